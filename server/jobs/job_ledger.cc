#include "server/jobs/job_ledger.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "server/errors/status_details.h"
#include "server/jobs/job_state.h"
#include "server/jobs/resource_names.h"
#include "server/store/proto_time.h"

namespace ptq {

void JobLedger::CompleteSnapshot(const v1::QuantizationJob& job, v1::QuantizationJob& snapshot) {
  snapshot.set_name(job.name());
  *snapshot.mutable_spec() = job.spec();
  *snapshot.mutable_labels() = job.labels();
  *snapshot.mutable_action_digest() = job.action_digest();
  *snapshot.mutable_create_time() = job.create_time();
  snapshot.set_job_spec_json(job.job_spec_json());
}

// Numbers all events and closes them with a snapshot, which leaves out what never changes: an event
// of a long job is then some hundred bytes.
void JobLedger::AppendSnapshot(JobRecord& record, std::vector<v1::JobEvent>& events) {
  const absl::Time now = absl::Now();
  v1::QuantizationJob& job = record.job;
  if (job.has_start_time()) {
    const absl::Time end = job.has_end_time() ? FromProtoTime(job.end_time()) : now;
    *job.mutable_progress()->mutable_elapsed() =
        ToProtoDuration(std::max(end - FromProtoTime(job.start_time()), absl::ZeroDuration()));
  }
  v1::QuantizationJob& snapshot = *events.emplace_back().mutable_snapshot();
  snapshot = job;
  snapshot.clear_name();
  snapshot.clear_spec();
  snapshot.clear_labels();
  snapshot.clear_action_digest();
  snapshot.clear_create_time();
  snapshot.clear_job_spec_json();
  for (v1::JobEvent& event : events) {
    event.set_sequence(++record.last_sequence);
    *event.mutable_time() = ToProtoTime(now);
  }
}

absl::StatusOr<JobRecord> JobLedger::Get(const std::string& tenant, const std::string& id) {
  auto record = store_.GetJob(tenant, id);
  if (absl::IsNotFound(record.status())) {
    return ResourceNotFound("quantization job", MakeResourceName(tenant, "quantizationJobs", id));
  }
  return record;
}

absl::StatusOr<JobRecord> JobLedger::Apply(const std::string& tenant, const std::string& id,
                                           Change change,
                                           const std::vector<v1::FileNode>* artifacts) {
  absl::MutexLock lock(&mutex_);
  PTQ_ASSIGN_OR_RETURN(JobRecord record, Get(tenant, id));
  const JobState before = record.job.state();
  std::vector<v1::JobEvent> events;
  PTQ_RETURN_IF_ERROR(change(record, events));
  const JobState after = record.job.state();
  if (after != before) {
    // Changes with the state alone, so that progress does not make a client's etag stale.
    record.job.set_etag(absl::StrCat(record.last_sequence + 1));
    if (IsEnded(after) && !IsEnded(before)) {
      const absl::Time now = absl::Now();
      *record.job.mutable_end_time() = ToProtoTime(now);
      if (record.job.spec().has_ttl_after_finished()) {
        *record.job.mutable_expire_time() =
            ToProtoTime(now + FromProtoDuration(record.job.spec().ttl_after_finished()));
      }
      record.worker_handle.clear();
      record.job.clear_worker();
      record.job.mutable_progress()->clear_eta();
      record.job.mutable_progress()->clear_eta_p90();
    }
  }
  AppendSnapshot(record, events);
  PTQ_RETURN_IF_ERROR(store_.UpdateJob(record, events, artifacts));
  hub_.Notify(Key(tenant, id));
  return record;
}

absl::StatusOr<std::string> JobLedger::Insert(JobRecord record,
                                              const std::vector<v1::FileNode>& artifacts,
                                              const std::optional<RequestKey>& request) {
  record.job.set_etag("1");
  std::vector<v1::JobEvent> events;
  AppendSnapshot(record, events);
  return store_.InsertJob(record, events, artifacts, request);
}

}  // namespace ptq
