// `ptq-worker run`: from a spec file to an exit status.
#ifndef PTQ_WORKER_RUN_JOB_H_
#define PTQ_WORKER_RUN_JOB_H_

#include <string>

#include "absl/status/statusor.h"
#include "common/cancellation.h"
#include "worker/event_writer.h"

namespace ptq {

struct RunOptions {
  std::string spec_path;
  std::string output;
  std::string cache_dir;  // of the baseline cache; "": none
};

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitBadSpec = 2;
// Stopped by a signal, resumable: kStoppedExitStatus (worker/stop_signals.h).

// Runs the job, tells its events, and says on standard error what went wrong in one sentence. The
// last event is succeeded, failed or cancelled. kExitBadSpec: the spec, what it names, or the
// output folder can't be used. Nothing was made of the weights then.
int RunJob(const RunOptions& options, EventWriter& events, const CancellationToken& cancel);

// Errors that the user repairs, as opposed to faults of the machine.
bool IsRefusal(const absl::Status& status);

// The last event of a run that gave a result's digest or an error, its sentence on standard error,
// and the exit status: kExitBadSpec for an error that is `refused`.
int FinishRun(const absl::StatusOr<std::string>& digest, bool refused, EventWriter& events,
              const CancellationToken& cancel);

}  // namespace ptq

#endif  // PTQ_WORKER_RUN_JOB_H_
