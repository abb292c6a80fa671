// A file that grows across runs until it is complete and gets its name.
#ifndef PTQ_CLIENT_PARTIAL_FILE_H_
#define PTQ_CLIENT_PARTIAL_FILE_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ptq {

// Thread-compatible; movable. What was appended stays on the disk when the object goes.
class PartialFile {
 public:
  // Opens `path`, or creates it; never through a link.
  static absl::StatusOr<PartialFile> Open(const std::string& path);
  ~PartialFile();
  PartialFile(PartialFile&& other) noexcept;
  PartialFile& operator=(PartialFile&&) = delete;

  int64_t size() const { return size_; }
  absl::Status Append(const void* data, size_t size);
  // Forgets everything.
  absl::Status Truncate();
  // Flushes to the disk, renames to `final_path` and flushes the folder.
  absl::Status Commit(const std::string& final_path);

 private:
  PartialFile(int fd, int64_t size, std::string path) : fd_(fd), size_(size), path_(path) {}
  int fd_ = -1;
  int64_t size_ = 0;
  std::string path_;
};

}  // namespace ptq

#endif  // PTQ_CLIENT_PARTIAL_FILE_H_
