#include "worker/file_digest.h"

#include <algorithm>
#include <utility>

#include "common/file.h"
#include "common/sha256.h"
#include "common/status_macros.h"

namespace ptq {
namespace {

constexpr int64_t kPieceBytes = 4 << 20;
constexpr int64_t kAheadBytes = 16 << 20;

}  // namespace

Json FileDigestToJson(const FileDigest& digest) {
  return Json{{"path", digest.path}, {"size_bytes", digest.size_bytes}, {"sha256", digest.sha256}};
}

absl::StatusOr<FileDigest> DigestFile(const std::string& folder, const std::string& name,
                                      const std::function<absl::Status(int64_t)>& on_bytes) {
  PTQ_ASSIGN_OR_RETURN(const auto file, ReadableFile::Open(JoinPath(folder, name)));
  Sha256 sha256;
  std::string buffer(static_cast<size_t>(std::min(kPieceBytes, file.size())), '\0');
  for (int64_t offset = 0; offset < file.size();) {
    const int64_t count = std::min(kPieceBytes, file.size() - offset);
    // The disk goes on while this piece is hashed.
    file.Prefetch(offset + count, kAheadBytes);
    PTQ_RETURN_IF_ERROR(file.ReadAt(offset, buffer.data(), static_cast<size_t>(count)));
    sha256.Update(buffer.data(), static_cast<size_t>(count));
    offset += count;
    PTQ_RETURN_IF_ERROR(on_bytes(count));
  }
  return FileDigest{name, file.size(), sha256.FinishHex()};
}

absl::StatusOr<FileDigest> DigestFile(const std::string& folder, const std::string& name,
                                      const CancellationToken& cancel) {
  PTQ_RETURN_IF_ERROR(cancel.Check());
  return DigestFile(folder, name, [&cancel](int64_t) { return cancel.Check(); });
}

std::string FolderDigest(std::vector<FileDigest> files) {
  std::sort(files.begin(), files.end(),
            [](const FileDigest& a, const FileDigest& b) { return a.path < b.path; });
  Sha256 sha256;
  for (const FileDigest& file : files) sha256.Update(file.sha256 + "  " + file.path + "\n");
  return sha256.FinishHex();
}

}  // namespace ptq
