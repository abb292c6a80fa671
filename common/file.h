// Files: positional reads, durable writes, and folders. POSIX underneath, absl::Status on top.
//
// Checkpoints are read with pread and never mapped: a truncated or replaced file under a mapping
// becomes SIGBUS or silent zeros, under pread it becomes an error that names the file.
#ifndef PTQ_COMMON_FILE_H_
#define PTQ_COMMON_FILE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ptq {

// A file open for reading. Movable; concurrent ReadAt calls are safe.
class ReadableFile {
 public:
  // kNotFound if there is no such file, kInvalidArgument if it is not a regular file.
  static absl::StatusOr<ReadableFile> Open(const std::string& path);
  ~ReadableFile();
  ReadableFile(ReadableFile&& other) noexcept;
  ReadableFile& operator=(ReadableFile&& other) noexcept;

  // Fills `size` bytes from `offset`. kDataLoss if the file ends before that.
  absl::Status ReadAt(int64_t offset, void* out, size_t size) const;
  // Asks the system to have these bytes in its page cache soon; a hint, so nothing can fail.
  void Prefetch(int64_t offset, int64_t size) const;
  // Bytes when the file was opened.
  int64_t size() const { return size_; }
  const std::string& path() const { return path_; }

 private:
  ReadableFile(int fd, int64_t size, std::string path) : fd_(fd), size_(size), path_(path) {}
  int fd_ = -1;
  int64_t size_ = 0;
  std::string path_;
};

// What tells whether a file is still the one that was looked at before.
struct FileStamp {
  uint64_t device = 0;
  uint64_t inode = 0;
  int64_t size = 0;
  int64_t modified_ns = 0;
  bool operator==(const FileStamp&) const = default;
};
absl::StatusOr<FileStamp> StampOf(const std::string& path);

// A file without a name in `folder`, for data that need not outlive the process. Movable.
class ScratchFile {
 public:
  static absl::StatusOr<ScratchFile> Create(const std::string& folder);
  ~ScratchFile();
  ScratchFile(ScratchFile&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ScratchFile& operator=(ScratchFile&&) = delete;

  // kResourceExhausted on a full disk; kDataLoss for what was never written.
  absl::Status WriteAt(int64_t offset, const void* data, size_t size) const;
  absl::Status ReadAt(int64_t offset, void* out, size_t size) const;

 private:
  explicit ScratchFile(int fd) : fd_(fd) {}
  int fd_ = -1;
};

// Writes `path` so that it is complete and durable, or absent: temporary name beside it, write,
// fsync, rename, fsync of the folder. What is appended begins to go to the disk at once, so that
// little is left for the fsync. The temporary file is removed unless Commit succeeded.
// kResourceExhausted on a full disk or quota, with the path.
class AtomicFileWriter {
 public:
  static absl::StatusOr<AtomicFileWriter> Create(const std::string& path);
  ~AtomicFileWriter();
  AtomicFileWriter(AtomicFileWriter&& other) noexcept;
  AtomicFileWriter& operator=(AtomicFileWriter&&) = delete;

  absl::Status Append(const void* data, size_t size);
  absl::Status Append(std::string_view data) { return Append(data.data(), data.size()); }
  // Flushes to the disk without giving the file its name: lets a writer re-open and check
  // `temporary_path()` before `Commit`.
  absl::Status Sync();
  absl::Status Commit();
  const std::string& temporary_path() const { return temporary_path_; }

 private:
  AtomicFileWriter(int fd, std::string path, std::string temporary_path)
      : fd_(fd), path_(path), temporary_path_(temporary_path) {}
  int fd_ = -1;
  std::string path_;
  std::string temporary_path_;
  int64_t size_ = 0;
  int64_t flushed_ = 0;  // bytes whose way to the disk has begun
  bool synced_ = false;
};

// Whole files. ReadFile refuses (kResourceExhausted) what exceeds `max_bytes`.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes = 256 << 20);
absl::Status WriteFileAtomically(const std::string& path, std::string_view data);
// Copies in pieces of 1 MiB through AtomicFileWriter.
absl::Status CopyFileAtomically(const std::string& from, const std::string& to);

// Folders. MakeDirectories is `mkdir -p`; RemoveTree is `rm -rf` and follows no link.
absl::Status MakeDirectories(const std::string& path);
absl::Status RemoveTree(const std::string& path);
absl::Status SyncDirectory(const std::string& path);
// Names (not paths) of the entries of one folder, sorted; kNotFound if there is none.
absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path);

bool PathExists(const std::string& path);
bool IsDirectory(const std::string& path);
std::string JoinPath(const std::string& folder, const std::string& name);
std::string BaseName(const std::string& path);
std::string DirName(const std::string& path);

// True for a relative path of plain components: no leading '/', no empty, "." or ".." component, no
// backslash, no control character. What may name a file inside a model.
bool IsSafeRelativePath(std::string_view path);

// A status for `errno_value`: kNotFound, kPermissionDenied, kResourceExhausted (disk full, quota,
// too many files), kAlreadyExists, else kInternal; the message is "context: strerror".
absl::Status ErrnoStatus(int errno_value, const std::string& context);

}  // namespace ptq

#endif  // PTQ_COMMON_FILE_H_
