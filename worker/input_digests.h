// The digests of what a job reads, made while it already works.
#ifndef PTQ_WORKER_INPUT_DIGESTS_H_
#define PTQ_WORKER_INPUT_DIGESTS_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/cancellation.h"
#include "common/file.h"
#include "common/json.h"
#include "worker/file_digest.h"
#include "worker/spec/job_spec.h"

namespace ptq {

// Threads hash the inputs from construction on, files in the order in which a job reads them and a
// few at a time: the job finds in the page cache what they read, and they what it reads, so that a
// disk is read once. Thread-safe.
class InputDigests {
 public:
  // `spec`'s paths need not exist: Wait tells. `cancel` must outlive it.
  InputDigests(const JobSpec& spec, const CancellationToken& cancel);
  ~InputDigests();  // stops
  InputDigests(const InputDigests&) = delete;
  InputDigests& operator=(const InputDigests&) = delete;

  // {"model": [files by path], "calibration": {size_bytes, sha256} or null, "evaluation": the
  // same}: what the job reads, by content. `progress` (may be empty) gets the fraction done while
  // there is something to wait for. Errors: kCancelled, what opening or reading a file gives, and
  // kDataLoss if a file was changed or replaced since construction.
  absl::StatusOr<Json> Wait(const std::function<void(double)>& progress = {});
  // An error that is known already, kCancelled included. Does not wait.
  absl::Status Check();

 private:
  struct File {
    std::string folder;
    std::string name;
    absl::StatusOr<FileStamp> stamp;  // at the beginning
    absl::StatusOr<FileDigest> digest = absl::CancelledError("not hashed");
  };

  void Work();
  absl::Status Hash(File& file);
  absl::StatusOr<Json> Result() const;

  const CancellationToken& cancel_;
  absl::Status listed_;
  std::vector<File> files_;  // the model's, calibration, evaluation
  size_t model_files_ = 0;
  bool calibration_ = false;
  bool evaluation_ = false;
  int64_t total_bytes_ = 0;

  std::atomic<bool> stop_{false};
  std::atomic<size_t> next_{0};
  std::atomic<int64_t> done_bytes_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t working_ = 0;                          // threads
  std::optional<absl::StatusOr<Json>> result_;  // once none is left
  std::vector<std::jthread> threads_;
};

}  // namespace ptq

#endif  // PTQ_WORKER_INPUT_DIGESTS_H_
