#include "server/data_dir_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdlib>

#include "absl/strings/str_format.h"
#include "common/file.h"

namespace ptq {

absl::StatusOr<std::unique_ptr<DataDirLock>> DataDirLock::Take(const std::string& data_dir) {
  const std::string path = JoinPath(data_dir, "lock");
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus(errno, path);
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    char text[32] = {};
    const int pid = ::pread(fd, text, sizeof(text) - 1, 0) > 0 ? std::atoi(text) : 0;
    ::close(fd);
    if (error != EWOULDBLOCK) return ErrnoStatus(error, path);
    return absl::AlreadyExistsError(absl::StrFormat(
        "another ptqd (process %d) uses the data folder %s; stop it, or choose another --data-dir",
        pid, data_dir));
  }
  const std::string pid = absl::StrFormat("%d\n", ::getpid());
  if (::ftruncate(fd, 0) != 0 || ::pwrite(fd, pid.data(), pid.size(), 0) < 0) {
    const int error = errno;
    ::close(fd);
    return ErrnoStatus(error, path);
  }
  return std::unique_ptr<DataDirLock>(new DataDirLock(fd));
}

DataDirLock::~DataDirLock() { ::close(fd_); }

}  // namespace ptq
