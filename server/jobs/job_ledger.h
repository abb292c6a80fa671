// The one way to change a job: read, change, write with events, tell whoever watches.
#ifndef PTQ_SERVER_JOBS_JOB_LEDGER_H_
#define PTQ_SERVER_JOBS_JOB_LEDGER_H_

#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/jobs/job_event_hub.h"
#include "server/store/job_store.h"

namespace ptq {

// Thread-safe: changes to jobs happen one after another. Borrows must outlive it.
class JobLedger {
 public:
  JobLedger(JobStore& store, JobEventHub& hub) : store_(store), hub_(hub) {}

  // Edits the record and may add events (without sequence and time). An error leaves all as it was.
  using Change =
      absl::FunctionRef<absl::Status(JobRecord& record, std::vector<v1::JobEvent>& events)>;

  // Applies `change` and appends a snapshot event after the change's own. `artifacts` replaces the
  // job's artifacts in the same transaction. Returns the new record, durable. kNotFound with
  // ResourceInfo; otherwise the change's or the store's error.
  absl::StatusOr<JobRecord> Apply(const std::string& tenant, const std::string& id, Change change,
                                  const std::vector<v1::FileNode>* artifacts = nullptr);

  // Adds the first events to a new record and stores it. Returns the id of the job that now answers
  // to the request.
  absl::StatusOr<std::string> Insert(JobRecord record, const std::vector<v1::FileNode>& artifacts,
                                     const std::optional<RequestKey>& request);

  // The record, with the derived fields of its job filled in. kNotFound with ResourceInfo.
  absl::StatusOr<JobRecord> Get(const std::string& tenant, const std::string& id);

  // What an event left out because it never changes: name, spec, labels and so on.
  static void CompleteSnapshot(const v1::QuantizationJob& job, v1::QuantizationJob& snapshot);

  JobStore& store() { return store_; }
  JobEventHub& hub() { return hub_; }
  static std::string Key(const std::string& tenant, const std::string& id) {
    return tenant + "/" + id;
  }

 private:
  static void AppendSnapshot(JobRecord& record, std::vector<v1::JobEvent>& events);

  JobStore& store_;
  JobEventHub& hub_;
  absl::Mutex mutex_;
};

}  // namespace ptq

#endif  // PTQ_SERVER_JOBS_JOB_LEDGER_H_
