// One attempt at one job: from PENDING to the end of its worker.
#ifndef PTQ_SERVER_JOBS_JOB_RUN_H_
#define PTQ_SERVER_JOBS_JOB_RUN_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/cancellation.h"
#include "server/blobs/blob_store.h"
#include "server/jobs/attempt_outcome.h"
#include "server/jobs/input_registry.h"
#include "server/jobs/job_ledger.h"
#include "server/jobs/progress_tracker.h"
#include "server/jobs/worker_launcher.h"

namespace ptq {

// What all runs share; must outlive them.
struct JobRunContext {
  std::string data_dir;
  JobLedger& ledger;
  BlobStore& blobs;
  InputRegistry& inputs;
  WorkerLauncher& launcher;
  // From SIGTERM to SIGKILL. Below the five seconds in which a cancelled job is CANCELLED.
  absl::Duration stop_grace = absl::Milliseconds(4500);
  // At most one stored event for progress within a phase in this time; state and blocks always are.
  absl::Duration progress_interval = absl::Seconds(1);

  std::string JobDir(const std::string& id) const { return data_dir + "/jobs/" + id; }
  std::string OutputDir(const std::string& id) const { return JobDir(id) + "/output"; }
};

// Owns a thread, which launches the worker and lives as long as it does. Destruction joins.
class JobRun {
 public:
  // `job` is PENDING. `done` is called from the run's thread as its last act.
  JobRun(JobRunContext& context, JobRecord job, std::function<void()> done);
  ~JobRun();
  JobRun(const JobRun&) = delete;
  JobRun& operator=(const JobRun&) = delete;

  // Thread-safe; returns at once.
  void RequestStop(StopReason reason);

 private:
  void Run();
  absl::StatusOr<WorkerCommand> Prepare();
  absl::Status MarkRunning(const WorkerProcess& process);
  AttemptEnd Follow(WorkerProcess& process);
  void HandleEvent(const JobEvent& event);
  void StoreProgress(std::vector<v1::JobEvent> events);
  absl::StatusOr<std::vector<BlobStore::NewBlob>> HashOutput(std::vector<v1::FileNode>* files);
  absl::Status Publish(const JobEvent& succeeded);
  absl::Status Conclude(const AttemptOutcome& outcome);
  // Repeats `step` while it fails for a reason that may pass, until the server stops.
  enum class Retry { kFullDisk, kAnyFault };
  void Persist(const std::function<absl::Status()>& step, Retry retry);
  absl::Time RunDeadline() const;

  JobRunContext& context_;
  const JobRecord job_;
  const std::string job_dir_;
  const std::string log_path_;
  std::function<void()> done_;
  std::atomic<StopReason> stop_{StopReason::kNone};
  CancellationToken stop_token_;
  ProgressTracker tracker_;
  std::optional<JobEvent> last_event_;
  std::vector<JobEvent> unsaved_;  // progress that waits for progress_interval
  absl::Time last_saved_;
  std::thread thread_;
};

// Files of a finished output folder, relative and sorted; names that begin with '.' are the
// worker's own.
absl::StatusOr<std::vector<std::string>> ListOutputFiles(const std::string& folder);

}  // namespace ptq

#endif  // PTQ_SERVER_JOBS_JOB_RUN_H_
