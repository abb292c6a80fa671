// The seam between the control plane and whatever runs ptq-worker: child processes now, a cluster's
// scheduler later, fakes in tests.
#ifndef PTQ_SERVER_JOBS_WORKER_LAUNCHER_H_
#define PTQ_SERVER_JOBS_WORKER_LAUNCHER_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace ptq {

struct WorkerCommand {
  std::string spec_path;   // job.json
  std::string output_dir;  // of the job; also its checkpoint
  std::string cache_dir;   // shared by all jobs: results of original models
  std::string log_path;    // standard error is appended here
};

struct WorkerExit {
  int exit_code = 0;  // if no signal
  int signal = 0;     // the one that killed it, or 0
};

// One started worker. One thread calls it; that thread must be the one that launched it and must
// live until Wait returned.
class WorkerProcess {
 public:
  virtual ~WorkerProcess() = default;

  // Enough to end this worker from a later server process; kept in the job's row.
  virtual std::string handle() const = 0;
  // For people: "pid 4711".
  virtual std::string description() const = 0;
  // The next line of standard output without its newline. Nothing: no line came before `deadline`.
  // kOutOfRange: the worker has ended and everything was read.
  virtual absl::StatusOr<std::optional<std::string>> ReadLine(absl::Time deadline) = 0;
  // Asks it to stop soon, resumably.
  virtual void RequestStop() = 0;
  // Ends it and what it started, now.
  virtual void Kill() = 0;
  // Blocks until it has ended. To be called once, after ReadLine gave kOutOfRange or after Kill.
  virtual WorkerExit Wait() = 0;
};

// Thread-safe.
class WorkerLauncher {
 public:
  virtual ~WorkerLauncher() = default;
  // An error means that no worker runs.
  virtual absl::StatusOr<std::unique_ptr<WorkerProcess>> Launch(const WorkerCommand& command) = 0;
  // Ends a worker that an earlier server process started, if it still lives, and returns when it is
  // gone.
  virtual absl::Status EndOrphan(const std::string& handle) = 0;
};

}  // namespace ptq

#endif  // PTQ_SERVER_JOBS_WORKER_LAUNCHER_H_
