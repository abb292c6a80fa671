// The states of a job and which of them may follow which: the one table that decides.
#ifndef PTQ_SERVER_JOBS_JOB_STATE_H_
#define PTQ_SERVER_JOBS_JOB_STATE_H_

#include "absl/status/status.h"
#include "ptq/v1/quantization_service.pb.h"

namespace ptq {

using JobState = v1::QuantizationJob::State;

// QUEUED     -> PENDING     a worker is being started (inputs checked and pinned)
//               CANCELLING
// PENDING    -> RUNNING     it runs
//               QUEUED      the server stops
//               FAILED      inputs damaged, worker not startable
//               CANCELLING
// RUNNING    -> SUCCEEDED
//               FAILED
//               QUEUED      the worker was lost, or the server stops
//               PAUSED
//               CANCELLING
// CANCELLING -> CANCELLED, or SUCCEEDED or FAILED if it ended first
// PAUSED     -> QUEUED, CANCELLING
// FAILED     -> QUEUED      resumed; EXPIRED: its ttl_after_finished is over
// CANCELLED  -> QUEUED      resumed; EXPIRED
// SUCCEEDED  -> EXPIRED
bool IsLegalTransition(JobState from, JobState to);

// SUCCEEDED, FAILED, CANCELLED, EXPIRED: nothing more happens by itself.
bool IsEnded(JobState state);

// Sets the job's state. kFailedPrecondition with reason ILLEGAL_TRANSITION if the table forbids it.
absl::Status SetJobState(v1::QuantizationJob& job, JobState to);

}  // namespace ptq

#endif  // PTQ_SERVER_JOBS_JOB_STATE_H_
