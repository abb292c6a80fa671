#include "server/blobs/upload_state.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/status_macros.h"

namespace ptq {
namespace {

constexpr int64_t kSyncBytes = int64_t{64} << 20;
// Writeback is started early, so that the fsync every 64 MiB finds little left to do.
constexpr int64_t kWritebackBytes = int64_t{8} << 20;
constexpr int kCommittedDigits = 20;

std::string CommittedPath(const std::string& path) { return path + ".committed"; }

}  // namespace

int64_t UploadState::ReadCommitted(const std::string& path) {
  const auto text = ReadFile(CommittedPath(path), kCommittedDigits);
  struct stat info;
  if (!text.ok() || ::stat(path.c_str(), &info) != 0) return 0;
  const int64_t committed = std::strtoll(text->c_str(), nullptr, 10);
  return committed >= 0 && committed <= info.st_size ? committed : 0;
}

void UploadState::Remove(const std::string& path) {
  ::unlink(CommittedPath(path).c_str());
  ::unlink(path.c_str());
}

absl::StatusOr<std::unique_ptr<UploadState>> UploadState::Open(const std::string& path,
                                                               int64_t size) {
  const int64_t committed = ReadCommitted(path);
  struct statvfs disk;
  if (::statvfs(DirName(path).c_str(), &disk) == 0 &&
      static_cast<uint64_t>(size - committed) > uint64_t{disk.f_bavail} * disk.f_frsize) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("the server's disk has %d bytes free; the upload needs %d more",
                        uint64_t{disk.f_bavail} * disk.f_frsize, size - committed));
  }
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus(errno, "upload");
  const int committed_fd = ::open(CommittedPath(path).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (committed_fd < 0) {
    const int error = errno;
    ::close(fd);
    return ErrnoStatus(error, "upload");
  }
  std::unique_ptr<UploadState> state(new UploadState(path, fd, committed_fd));
  if (::ftruncate(fd, committed) != 0) return ErrnoStatus(errno, "upload");
  std::vector<char> buffer(1 << 20);
  for (int64_t offset = 0; offset < committed;) {
    const ssize_t count =
        ::pread(fd, buffer.data(), std::min<int64_t>(buffer.size(), committed - offset), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return ErrnoStatus(count < 0 ? errno : EIO, "upload");
    state->digest_.Update(buffer.data(), static_cast<size_t>(count));
    offset += count;
  }
  state->written_ = committed;
  state->committed_ = committed;
  state->writeback_started_ = committed;
  return state;
}

UploadState::~UploadState() {
  ::close(fd_);
  ::close(committed_fd_);
}

absl::Status UploadState::Append(std::string_view data) {
  digest_.Update(data);
  int64_t offset = written();
  const char* cursor = data.data();
  size_t left = data.size();
  while (left > 0) {
    const ssize_t count = ::pwrite(fd_, cursor, left, offset);
    if (count < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "upload");
    }
    cursor += count;
    offset += count;
    left -= static_cast<size_t>(count);
  }
  written_.store(offset, std::memory_order_release);
  if (offset - writeback_started_ >= kWritebackBytes) {
    // A hint: what fails here fails again, and is reported, in Sync.
    ::sync_file_range(fd_, writeback_started_, offset - writeback_started_, SYNC_FILE_RANGE_WRITE);
    writeback_started_ = offset;
  }
  return offset - committed() >= kSyncBytes ? Sync() : absl::OkStatus();
}

absl::Status UploadState::Sync() {
  absl::MutexLock lock(&sync_mutex_);
  const int64_t size = written();
  if (size == committed()) return absl::OkStatus();
  // A failed fsync drops the dirty pages: it must not be retried as a success. The committed size
  // stays where it was, and the next Open cuts the part back to it.
  if (::fdatasync(fd_) != 0) return ErrnoStatus(errno, "upload");
  const std::string text = absl::StrFormat("%0*d", kCommittedDigits, size);
  if (::pwrite(committed_fd_, text.data(), text.size(), 0) != kCommittedDigits) {
    return ErrnoStatus(errno, "upload");
  }
  if (::fdatasync(committed_fd_) != 0) return ErrnoStatus(errno, "upload");
  committed_.store(size, std::memory_order_release);
  return absl::OkStatus();
}

}  // namespace ptq
