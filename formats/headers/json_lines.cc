#include "formats/headers/json_lines.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "common/json.h"
#include "common/status_macros.h"
#include "common/status_util.h"

namespace ptq {
namespace {

constexpr size_t kPieceBytes = 1 << 20;
constexpr size_t kMaxLineBytes = 64 << 20;

}  // namespace

absl::StatusOr<JsonLinesReader> JsonLinesReader::Open(const std::string& path) {
  PTQ_ASSIGN_OR_RETURN(auto file, ReadableFile::Open(path));
  return JsonLinesReader(std::move(file));
}

absl::StatusOr<bool> JsonLinesReader::NextLine(std::string* line) {
  size_t searched = position_;
  while (true) {
    const size_t newline = buffer_.find('\n', searched);
    if (newline != std::string::npos) {
      line->assign(buffer_, position_, newline - position_);
      position_ = newline + 1;
      ++line_number_;
      return true;
    }
    buffer_.erase(0, position_);
    position_ = 0;
    searched = buffer_.size();
    const size_t count =
        static_cast<size_t>(std::min<int64_t>(kPieceBytes, file_.size() - file_offset_));
    if (count == 0) {
      if (buffer_.empty()) return false;
      *line = std::move(buffer_);
      buffer_.clear();
      ++line_number_;
      return true;
    }
    if (buffer_.size() + count > kMaxLineBytes) {
      ++line_number_;
      return absl::InvalidArgumentError(absl::StrFormat(
          "line %d: longer than %d bytes", line_number_, static_cast<int64_t>(kMaxLineBytes)));
    }
    buffer_.resize(searched + count);
    PTQ_RETURN_IF_ERROR(file_.ReadAt(file_offset_, buffer_.data() + searched, count));
    file_offset_ += static_cast<int64_t>(count);
  }
}

absl::StatusOr<std::optional<std::string>> JsonLinesReader::Next() {
  std::string line;
  while (true) {
    PTQ_ASSIGN_OR_RETURN(const bool found, NextLine(&line));
    if (!found) return std::nullopt;
    if (line.find_first_not_of(" \t\r") != std::string::npos) break;
  }
  const std::string context = absl::StrFormat("line %d", line_number_);
  if (!IsValidUtf8(line)) return absl::InvalidArgumentError(context + ": not valid UTF-8");
  auto document = ParseJson(line);
  if (!document.ok()) return Annotate(document.status(), context);
  if (!document->is_object()) return absl::InvalidArgumentError(context + ": not a JSON object");
  auto text = document->find("text");
  if (text == document->end() || !text->is_string()) {
    return absl::InvalidArgumentError(context + ": no string field \"text\"");
  }
  return std::move(text->get_ref<std::string&>());
}

}  // namespace ptq
