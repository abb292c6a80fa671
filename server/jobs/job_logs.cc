#include "server/jobs/job_logs.h"

#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/json.h"
#include "common/status_macros.h"
#include "common/time.h"
#include "server/store/proto_time.h"

namespace ptq {
namespace {

constexpr size_t kMaxLineBytes = 16 << 10;
constexpr int64_t kReadBytes = 64 << 10;
constexpr size_t kMessageTailBytes = 400;

// "attempt-0001.log" -> 1; 0 for other names.
int AttemptOf(const std::string& name) {
  if (name.size() != 16 || name.compare(0, 8, "attempt-") != 0 || name.substr(12) != ".log") {
    return 0;
  }
  return std::atoi(name.substr(8, 4).c_str());
}

// Protobuf strings are UTF-8; a worker's library may print anything.
std::string ToUtf8(const std::string& text) {
  if (IsValidUtf8(text)) return text;
  std::string clean = text;
  for (char& c : clean) {
    if (static_cast<unsigned char>(c) >= 0x80) c = '?';
  }
  return clean;
}

}  // namespace

std::string LogFolder(const std::string& job_dir) { return JoinPath(job_dir, "logs"); }

std::string LogPath(const std::string& job_dir, int attempt) {
  return absl::StrFormat("%s/attempt-%04d.log", LogFolder(job_dir), std::min(attempt, 9999));
}

std::string LastLogLine(const std::string& path) {
  const auto file = ReadableFile::Open(path);
  if (!file.ok()) return "";
  const int64_t size = std::min<int64_t>(file->size(), 4096);
  std::string tail(static_cast<size_t>(size), '\0');
  if (!file->ReadAt(file->size() - size, tail.data(), tail.size()).ok()) return "";
  const size_t end = tail.find_last_not_of(" \n\r\t");
  if (end == std::string::npos) return "";
  tail.resize(end + 1);
  const size_t begin = tail.rfind('\n');
  std::string line = begin == std::string::npos ? tail : tail.substr(begin + 1);
  if (line.size() > kMessageTailBytes) line = line.substr(line.size() - kMessageTailBytes);
  return ToUtf8(line);
}

absl::StatusOr<std::optional<v1::LogEntry>> JobLogReader::Next(bool all_written) {
  while (true) {
    size_t end = buffer_.find('\n');
    size_t length = end;
    if (end == std::string::npos && buffer_.size() < kMaxLineBytes) {
      PTQ_ASSIGN_OR_RETURN(const bool more, Fill());
      if (more) continue;
      if (!all_written || buffer_.empty()) return std::nullopt;
      end = length = buffer_.size();
    }
    if (length == std::string::npos || length > kMaxLineBytes) {
      // What is beyond the limit follows as lines of its own.
      end = length = kMaxLineBytes;
    }
    const std::string text = buffer_.substr(0, length);
    buffer_.erase(0, end + (end < buffer_.size() && buffer_[end] == '\n' ? 1 : 0));
    if (++line_ > after_line_) return MakeEntry(text);
  }
}

// Reads on in the current file; at its end goes to the next attempt's. False: nothing new.
absl::StatusOr<bool> JobLogReader::Fill() {
  if (attempt_ > 0) {
    PTQ_ASSIGN_OR_RETURN(auto file, ReadableFile::Open(LogPath(job_dir_, attempt_)));
    const int64_t count = std::min(kReadBytes, file.size() - offset_);
    if (count > 0) {
      std::string piece(static_cast<size_t>(count), '\0');
      PTQ_RETURN_IF_ERROR(file.ReadAt(offset_, piece.data(), piece.size()));
      buffer_ += piece;
      offset_ += count;
      return true;
    }
  }
  const auto names = ListDirectory(LogFolder(job_dir_));
  if (absl::IsNotFound(names.status())) return false;
  PTQ_RETURN_IF_ERROR(names.status());
  for (const std::string& name : *names) {
    const int attempt = AttemptOf(name);
    if (attempt <= attempt_) continue;
    if (!buffer_.empty()) buffer_ += '\n';  // a killed worker's last words
    attempt_ = attempt;
    offset_ = 0;
    return true;
  }
  return false;
}

// Lines of our own logger are "TIME S message", S being the severity's letter.
v1::LogEntry JobLogReader::MakeEntry(const std::string& text) const {
  v1::LogEntry entry;
  entry.set_line(line_);
  entry.set_attempt(attempt_);
  entry.set_severity("info");
  const size_t space = text.find(' ');
  if (space != std::string::npos && text.size() > space + 3 && text[space + 2] == ' ') {
    const auto time = ParseRfc3339(text.substr(0, space));
    const char letter = text[space + 1];
    if (time.ok() && std::string("DIWE").find(letter) != std::string::npos) {
      *entry.mutable_time() = ToProtoTime(*time);
      entry.set_severity(letter == 'D'   ? "debug"
                         : letter == 'W' ? "warning"
                         : letter == 'E' ? "error"
                                         : "info");
      entry.set_message(ToUtf8(text.substr(space + 3)));
      return entry;
    }
  }
  entry.set_message(ToUtf8(text));
  return entry;
}

}  // namespace ptq
