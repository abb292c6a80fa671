// SHA-256 of files that may be large, with a way to stop.
#ifndef PTQ_WORKER_FILE_DIGEST_H_
#define PTQ_WORKER_FILE_DIGEST_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/cancellation.h"
#include "common/json.h"

namespace ptq {

struct FileDigest {
  std::string path;  // as the caller named it
  int64_t size_bytes = 0;
  std::string sha256;
};

Json FileDigestToJson(const FileDigest& digest);  // {"path", "size_bytes", "sha256"}

// Hashes `name` in `folder` in pieces. `on_bytes` is told of each piece's size; an error that it
// returns ends the work.
absl::StatusOr<FileDigest> DigestFile(const std::string& folder, const std::string& name,
                                      const std::function<absl::Status(int64_t)>& on_bytes);
// The same until `cancel` is: kCancelled.
absl::StatusOr<FileDigest> DigestFile(const std::string& folder, const std::string& name,
                                      const CancellationToken& cancel);

// One digest for a folder: SHA-256 of the lines "<sha256>  <path>\n" sorted by path, which is what
// `LC_ALL=C sha256sum * | sha256sum` prints for a flat folder.
std::string FolderDigest(std::vector<FileDigest> files);

}  // namespace ptq

#endif  // PTQ_WORKER_FILE_DIGEST_H_
