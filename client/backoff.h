// Waiting times between attempts, and when to give up.
#ifndef PTQ_CLIENT_BACKOFF_H_
#define PTQ_CLIENT_BACKOFF_H_

#include <algorithm>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace ptq {

struct RetryOptions {
  absl::Duration initial_backoff = absl::Milliseconds(250);
  absl::Duration maximum_backoff = absl::Seconds(2);
  absl::Duration give_up_after = absl::Seconds(60);  // without any success
};

// Doubling waits. Thread-compatible.
class Backoff {
 public:
  explicit Backoff(const RetryOptions& options) : options_(options) { Succeeded(); }

  // Starts again from the shortest wait and the full patience.
  void Succeeded() {
    next_ = options_.initial_backoff;
    last_success_ = absl::Now();
  }
  bool Expired() const { return absl::Now() - last_success_ >= options_.give_up_after; }
  absl::Duration SinceSuccess() const { return absl::Now() - last_success_; }
  // How long to wait before the next attempt.
  absl::Duration NextWait() {
    const absl::Duration wait = next_;
    next_ = std::min(2 * next_, options_.maximum_backoff);
    return wait;
  }

 private:
  RetryOptions options_;
  absl::Duration next_;
  absl::Time last_success_;
};

}  // namespace ptq

#endif  // PTQ_CLIENT_BACKOFF_H_
