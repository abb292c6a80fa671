#include "client/partial_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "common/file.h"

namespace ptq {

absl::StatusOr<PartialFile> PartialFile::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (fd < 0) return ErrnoStatus(errno, path);
  struct stat info;
  if (::fstat(fd, &info) != 0) {
    const int error = errno;
    ::close(fd);
    return ErrnoStatus(error, path);
  }
  return PartialFile(fd, static_cast<int64_t>(info.st_size), path);
}

PartialFile::~PartialFile() {
  if (fd_ >= 0) ::close(fd_);
}

PartialFile::PartialFile(PartialFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), size_(other.size_), path_(std::move(other.path_)) {}

absl::Status PartialFile::Append(const void* data, size_t size) {
  const char* cursor = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t count = ::write(fd_, cursor, size);
    if (count < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, path_);
    }
    cursor += count;
    size_ += count;
    size -= static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

absl::Status PartialFile::Truncate() {
  if (::ftruncate(fd_, 0) != 0) return ErrnoStatus(errno, path_);
  size_ = 0;
  return absl::OkStatus();
}

absl::Status PartialFile::Commit(const std::string& final_path) {
  if (::fsync(fd_) != 0) return ErrnoStatus(errno, path_);
  if (::close(std::exchange(fd_, -1)) != 0) return ErrnoStatus(errno, path_);
  if (::rename(path_.c_str(), final_path.c_str()) != 0) return ErrnoStatus(errno, final_path);
  return SyncDirectory(DirName(final_path));
}

}  // namespace ptq
