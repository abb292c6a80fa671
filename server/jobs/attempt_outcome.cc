#include "server/jobs/attempt_outcome.h"

#include <signal.h>
#include <string.h>

#include "absl/strings/str_format.h"
#include "server/errors/status_details.h"

namespace ptq {
namespace {

using Job = v1::QuantizationJob;

// The contract of `ptq-worker run`.
constexpr int kExitBadSpec = 2;
constexpr int kExitStopped = 143;

absl::Status LostWorker(const std::string& how) {
  return WithReason(absl::UnavailableError("the worker " + how), "WORKER_LOST");
}

absl::Status KilledBy(int signal) {
  const char* name = ::sigabbrev_np(signal);
  const std::string hint =
      signal == SIGKILL ? ", most often the kernel's doing when memory runs out" : "";
  return LostWorker(absl::StrFormat("was killed by SIG%s%s", name != nullptr ? name : "?", hint));
}

}  // namespace

AttemptOutcome DecideOutcome(const AttemptEnd& end) {
  const bool clean = end.exit.signal == 0;
  const auto said = [&](JobEvent::Type type) {
    return end.last_event.has_value() && end.last_event->type == type;
  };
  if (clean && end.exit.exit_code == 0 && said(JobEvent::Type::kSucceeded)) {
    return {Job::SUCCEEDED, absl::OkStatus()};
  }
  if (end.stop == StopReason::kCancel) return {Job::CANCELLED, absl::OkStatus()};
  if (end.stop == StopReason::kDeadline) {
    return {Job::FAILED,
            WithReason(absl::DeadlineExceededError("the job ran longer than its max_run_duration"),
                       "MAX_RUN_DURATION")};
  }
  if (clean && said(JobEvent::Type::kFailed)) {
    const absl::StatusCode code = end.last_event->code == absl::StatusCode::kOk
                                      ? absl::StatusCode::kUnknown
                                      : end.last_event->code;
    // Its GPU failed, or its predecessor has not ended yet: another process may fare better.
    if (code == absl::StatusCode::kUnavailable) {
      if (end.stop == StopReason::kServerStops) return {Job::QUEUED, absl::OkStatus()};
      return {Job::QUEUED, LostWorker("gave up: " + end.last_event->message), /*worker_lost=*/true};
    }
    return {Job::FAILED, absl::Status(code, end.last_event->message)};
  }
  if (end.stop == StopReason::kServerStops) return {Job::QUEUED, absl::OkStatus()};
  if (!clean) return {Job::QUEUED, KilledBy(end.exit.signal), /*worker_lost=*/true};
  if (end.exit.exit_code == kExitStopped || said(JobEvent::Type::kCancelled)) {
    return {Job::QUEUED, LostWorker("was stopped by somebody else"), /*worker_lost=*/true};
  }
  const std::string message =
      absl::StrFormat("the worker ended with status %d and did not say why%s%s", end.exit.exit_code,
                      end.last_log_line.empty() ? "" : "; its last line: ", end.last_log_line);
  return {Job::FAILED, end.exit.exit_code == kExitBadSpec ? absl::InvalidArgumentError(message)
                                                          : absl::InternalError(message)};
}

}  // namespace ptq
