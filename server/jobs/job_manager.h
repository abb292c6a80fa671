// Queues jobs, runs them, and brings them through the server's own death.
#ifndef PTQ_SERVER_JOBS_JOB_MANAGER_H_
#define PTQ_SERVER_JOBS_JOB_MANAGER_H_

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/jobs/job_run.h"

namespace ptq {

struct JobManagerOptions {
  int max_concurrent_jobs = 1;
  // Uploads without a write and blobs that no model, dataset or job names, for this long, are
  // removed.
  absl::Duration abandoned_age = absl::Hours(24);
  // How long a request_id is remembered at least; beyond that, as long as its resource.
  absl::Duration request_age = absl::Hours(24);
};

// Thread-safe. A scheduler thread starts a JobRun for the QUEUED job of the highest priority,
// oldest first, while fewer than max_concurrent_jobs run; every second it also wakes the open
// streams and expires jobs, and every ten minutes it tidies up.
class JobManager {
 public:
  JobManager(JobManagerOptions options, JobRunContext context);
  ~JobManager();

  // Ends workers that an earlier server left behind, queues their jobs again (CANCELLING ones
  // become CANCELLED), removes what no job owns, and starts scheduling.
  absl::Status Start();
  // Asks all workers to stop; returns when they have ended and their jobs are QUEUED again.
  void Stop();

  // Stores a new job. With CachePolicy REUSE, an equal action that SUCCEEDED before makes it
  // SUCCEEDED at once with the same artifacts. Returns the job that answers to the request, which
  // may be an earlier one.
  absl::StatusOr<JobRecord> Submit(JobRecord record, const std::optional<RequestKey>& request);
  // QUEUED jobs are CANCELLED at once, others within five seconds; already CANCELLING is fine.
  // kFailedPrecondition once it has ended; kAborted if `etag` is given and stale.
  absl::Status Cancel(const std::string& tenant, const std::string& id, const std::string& etag);
  // PAUSED, or FAILED or CANCELLED with its folder: QUEUED again.
  absl::StatusOr<JobRecord> Resume(const std::string& tenant, const std::string& id,
                                   const std::string& etag);
  // Removes an ended job, its folder, and the bytes that only it needed.
  absl::Status Delete(const std::string& tenant, const std::string& id);

  // What the ten-minute tidying does; `now` is a parameter for tests.
  absl::Status TidyUp(absl::Time now);

  JobRunContext& context() { return context_; }

 private:
  absl::Status Recover();
  void RemoveOrphanFolders();
  void Schedule();
  void StartQueuedJobs() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status ExpireJobs(absl::Time now);
  // Waits until the thread of an ended job is gone. kUnavailable if that takes long.
  absl::Status AwaitRun(const std::string& key);
  void RequestStop(const std::string& key, StopReason reason);

  const JobManagerOptions options_;
  JobRunContext context_;
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool work_may_wait_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, std::unique_ptr<JobRun>> runs_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<JobRun>> ended_runs_ ABSL_GUARDED_BY(mutex_);  // to be joined
  std::thread scheduler_;
};

}  // namespace ptq

#endif  // PTQ_SERVER_JOBS_JOB_MANAGER_H_
