// What the end of a worker means for its job.
#ifndef PTQ_SERVER_JOBS_ATTEMPT_OUTCOME_H_
#define PTQ_SERVER_JOBS_ATTEMPT_OUTCOME_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "server/jobs/job_state.h"
#include "server/jobs/worker_launcher.h"
#include "worker/spec/job_event.h"

namespace ptq {

// Why a run was asked to stop. A cancellation outweighs the others.
enum class StopReason { kNone, kServerStops, kDeadline, kCancel };

struct AttemptEnd {
  WorkerExit exit;
  std::optional<JobEvent> last_event;  // succeeded, failed or cancelled, if it came
  StopReason stop = StopReason::kNone;
  std::string last_log_line;  // of standard error
};

struct AttemptOutcome {
  JobState next = v1::QuantizationJob::QUEUED;  // SUCCEEDED, FAILED, CANCELLED or QUEUED
  // FAILED: why. QUEUED with `worker_lost`: what the job will fail with if that was one loss too
  // many.
  absl::Status error;
  bool worker_lost = false;
};

// A result counts even if the job was being cancelled. Otherwise: a cancelled job is CANCELLED, one
// that ran too long FAILED (kDeadlineExceeded), one that said why it failed FAILED with that; when
// the server stops, QUEUED. A worker that died of a signal (kill, out of memory, a crash), was
// stopped by somebody else or said kUnavailable (its GPU failed) is lost: QUEUED, to go on after
// its last finished block. One that ended by itself without saying why is FAILED: it would do so
// again.
AttemptOutcome DecideOutcome(const AttemptEnd& end);

}  // namespace ptq

#endif  // PTQ_SERVER_JOBS_ATTEMPT_OUTCOME_H_
