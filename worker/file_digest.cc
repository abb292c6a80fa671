#include "worker/file_digest.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>

#include "common/file.h"
#include "common/sha256.h"
#include "common/status_macros.h"
#include "formats/headers/checkpoint_index.h"

namespace ptq {
namespace {

constexpr int64_t kPieceBytes = 4 << 20;
// Files hashed at a time: one thread hashes a gigabyte a second, less than a disk reads.
constexpr unsigned kThreads = 8;

int64_t SizeOf(const std::string& path) {
  const auto file = ReadableFile::Open(path);
  return file.ok() ? file->size() : 0;  // the digest reports what is wrong with it
}

}  // namespace

Json FileDigestToJson(const FileDigest& digest) {
  return Json{{"path", digest.path}, {"size_bytes", digest.size_bytes}, {"sha256", digest.sha256}};
}

absl::StatusOr<FileDigest> DigestFile(const std::string& folder, const std::string& name,
                                      const CancellationToken& cancel,
                                      const std::function<void(int64_t)>& on_bytes) {
  PTQ_ASSIGN_OR_RETURN(const auto file, ReadableFile::Open(JoinPath(folder, name)));
  Sha256 sha256;
  std::string buffer(static_cast<size_t>(std::min(kPieceBytes, file.size())), '\0');
  for (int64_t offset = 0; offset < file.size();) {
    PTQ_RETURN_IF_ERROR(cancel.Check());
    const int64_t count = std::min(kPieceBytes, file.size() - offset);
    PTQ_RETURN_IF_ERROR(file.ReadAt(offset, buffer.data(), static_cast<size_t>(count)));
    sha256.Update(buffer.data(), static_cast<size_t>(count));
    offset += count;
    if (on_bytes) on_bytes(count);
  }
  return FileDigest{name, file.size(), sha256.FinishHex()};
}

std::string FolderDigest(std::vector<FileDigest> files) {
  std::sort(files.begin(), files.end(),
            [](const FileDigest& a, const FileDigest& b) { return a.path < b.path; });
  Sha256 sha256;
  for (const FileDigest& file : files) sha256.Update(file.sha256 + "  " + file.path + "\n");
  return sha256.FinishHex();
}

absl::StatusOr<Json> DigestInputs(const JobSpec& spec, const CancellationToken& cancel,
                                  const std::function<void(double)>& progress) {
  std::vector<std::string> skipped;
  PTQ_ASSIGN_OR_RETURN(std::vector<std::string> names, SelectModelFiles(spec.model, &skipped));
  std::sort(names.begin(), names.end());
  int64_t total = 0;
  for (const std::string& name : names) total += SizeOf(JoinPath(spec.model, name));
  for (const std::string& path : {spec.calibration, spec.evaluation}) {
    if (!path.empty()) total += SizeOf(path);
  }
  int64_t done = 0;
  std::mutex mutex;
  const auto on_bytes = [&](int64_t count) {
    const std::lock_guard lock(mutex);
    done += count;
    if (total > 0) progress(static_cast<double>(done) / static_cast<double>(total));
  };

  std::vector<absl::StatusOr<FileDigest>> digests(names.size(), absl::CancelledError("not hashed"));
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < names.size(); i = next++) {
      digests[i] = DigestFile(spec.model, names[i], cancel, on_bytes);
      if (!digests[i].ok()) next = names.size();  // nothing more is of use
    }
  };
  {
    std::vector<std::jthread> helpers;
    const unsigned threads = std::min(kThreads, std::thread::hardware_concurrency());
    for (unsigned i = 1; i < threads && i < names.size(); ++i) helpers.emplace_back(work);
    work();
  }
  // What failed comes first: the files after it may only have been left out.
  for (const auto& digest : digests) {
    if (!digest.ok() && !absl::IsCancelled(digest.status())) return digest.status();
  }
  Json inputs;
  inputs["model"] = Json::array();
  for (const auto& digest : digests) {
    if (!digest.ok()) return digest.status();
    inputs["model"].push_back(FileDigestToJson(*digest));
  }
  const auto data = [&](const std::string& path) -> absl::StatusOr<Json> {
    if (path.empty()) return Json(nullptr);
    PTQ_ASSIGN_OR_RETURN(const FileDigest digest, DigestFile("", path, cancel, on_bytes));
    return Json{{"size_bytes", digest.size_bytes}, {"sha256", digest.sha256}};
  };
  PTQ_ASSIGN_OR_RETURN(inputs["calibration"], data(spec.calibration));
  PTQ_ASSIGN_OR_RETURN(inputs["evaluation"], data(spec.evaluation));
  return inputs;
}

}  // namespace ptq
