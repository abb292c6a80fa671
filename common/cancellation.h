// A one-way flag by which one thread (or a signal handler) asks another to stop.
#ifndef PTQ_COMMON_CANCELLATION_H_
#define PTQ_COMMON_CANCELLATION_H_

#include <atomic>

#include "absl/status/status.h"

namespace ptq {

// Thread-safe and async-signal-safe. Long-running code polls `Check()` between units of work that
// take well under five seconds.
class CancellationToken {
 public:
  void Cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool IsCancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  // kCancelled once `Cancel` was called.
  absl::Status Check() const {
    return IsCancelled() ? absl::CancelledError("the job was asked to stop") : absl::OkStatus();
  }

 private:
  std::atomic<bool> cancelled_{false};
};

}  // namespace ptq

#endif  // PTQ_COMMON_CANCELLATION_H_
