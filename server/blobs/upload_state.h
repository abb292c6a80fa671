// The bytes of one unfinished upload: a part file and, beside it, how much of that is durable.
#ifndef PTQ_SERVER_BLOBS_UPLOAD_STATE_H_
#define PTQ_SERVER_BLOBS_UPLOAD_STATE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/sha256.h"

namespace ptq {

// One writer calls Append; Sync may be called by others at the same time.
//
// The committed size lives in its own small file and is written after an fsync of the part: what a
// power loss left beyond it is unknown, so opening cuts the part there and hashes the rest again
// (1.8 GB/s on one core with SHA instructions).
class UploadState {
 public:
  // Opens `path` or creates it. kResourceExhausted if the disk has no room for the rest of `size`.
  static absl::StatusOr<std::unique_ptr<UploadState>> Open(const std::string& path, int64_t size);
  // Committed bytes of a part that nobody has open; 0 if there is none.
  static int64_t ReadCommitted(const std::string& path);
  // Removes part and committed size.
  static void Remove(const std::string& path);
  ~UploadState();

  // Writes and hashes; makes each 64 MiB durable.
  absl::Status Append(std::string_view data);
  // Makes everything appended so far durable.
  absl::Status Sync();
  // SHA-256 of all bytes; no Append may follow.
  std::string FinishHex() { return digest_.FinishHex(); }

  int64_t written() const { return written_.load(std::memory_order_acquire); }
  int64_t committed() const { return committed_.load(std::memory_order_acquire); }
  const std::string& path() const { return path_; }

 private:
  UploadState(std::string path, int fd, int committed_fd)
      : path_(std::move(path)), fd_(fd), committed_fd_(committed_fd) {}

  const std::string path_;
  const int fd_;
  const int committed_fd_;
  Sha256 digest_;
  std::atomic<int64_t> written_{0};
  std::atomic<int64_t> committed_{0};
  int64_t writeback_started_ = 0;
  absl::Mutex sync_mutex_;
};

}  // namespace ptq

#endif  // PTQ_SERVER_BLOBS_UPLOAD_STATE_H_
