#include "server/jobs/job_manager.h"

#include <malloc.h>

#include <fstream>
#include <utility>

#include "absl/time/clock.h"
#include "common/file.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "server/errors/status_details.h"
#include "server/jobs/job_state.h"
#include "server/jobs/resource_names.h"
#include "server/store/proto_time.h"

namespace ptq {
namespace {

using Job = v1::QuantizationJob;

constexpr absl::Duration kTick = absl::Seconds(1);
constexpr absl::Duration kTidyInterval = absl::Minutes(10);
constexpr absl::Duration kTrimInterval = absl::Seconds(10);
constexpr int64_t kMaxIdlePages = (int64_t{40} << 20) / 4096;
// From a job's last state to the end of its thread it is a matter of milliseconds.
constexpr absl::Duration kRunEndTimeout = absl::Seconds(10);
constexpr int kAllArtifacts = 1 << 30;

// Streams leave freed heap behind. It goes back to the system, so that an idle server stays small.
void TrimHeap() {
  std::ifstream statm("/proc/self/statm");
  int64_t total = 0, resident = 0;
  if (statm >> total >> resident && resident > kMaxIdlePages) ::malloc_trim(0);
}

absl::Status CheckEtag(const v1::QuantizationJob& job, const std::string& etag) {
  if (etag.empty() || etag == job.etag()) return absl::OkStatus();
  return WithReason(
      absl::AbortedError("the job has changed since etag " + etag + "; read it again"),
      "ETAG_STALE");
}

}  // namespace

JobManager::JobManager(JobManagerOptions options, JobRunContext context)
    : options_(options), context_(std::move(context)) {}

JobManager::~JobManager() { Stop(); }

absl::Status JobManager::Start() {
  PTQ_RETURN_IF_ERROR(Recover());
  RemoveOrphanFolders();
  scheduler_ = std::thread([this] { Schedule(); });
  return absl::OkStatus();
}

void JobManager::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    for (auto& [key, run] : runs_) run->RequestStop(StopReason::kServerStops);
  }
  if (scheduler_.joinable()) scheduler_.join();
}

absl::Status JobManager::Recover() {
  PTQ_ASSIGN_OR_RETURN(const auto unfinished, context_.ledger.store().JobsInStates(
                                                  {Job::PENDING, Job::RUNNING, Job::CANCELLING}));
  for (const JobRecord& record : unfinished) {
    PTQ_RETURN_IF_ERROR(context_.launcher.EndOrphan(record.worker_handle));
    // The attempt goes on: the server was lost, not the worker.
    const auto changed = context_.ledger.Apply(
        record.tenant, record.id, [](JobRecord& job, std::vector<v1::JobEvent>&) {
          job.worker_handle.clear();
          job.job.clear_worker();
          return SetJobState(job.job,
                             job.job.state() == Job::CANCELLING ? Job::CANCELLED : Job::QUEUED);
        });
    PTQ_RETURN_IF_ERROR(changed.status());
    PTQ_LOG(Info) << "job " << record.id << " of an earlier ptqd is "
                  << Job::State_Name(changed->job.state()) << " again";
  }
  return absl::OkStatus();
}

void JobManager::RemoveOrphanFolders() {
  const std::string folder = JoinPath(context_.data_dir, "jobs");
  const auto names = ListDirectory(folder);
  if (!names.ok()) return;
  for (const std::string& name : *names) {
    // Folders carry the id alone; it is unique over all tenants.
    if (!absl::IsNotFound(context_.ledger.store().GetJob("default", name).status())) continue;
    const absl::Status removed = RemoveTree(JoinPath(folder, name));
    if (!removed.ok()) PTQ_LOG(Warning) << Message(removed);
  }
}

void JobManager::Schedule() {
  absl::Time next_tidy = absl::Now();
  absl::Time next_trim = absl::Now();
  while (true) {
    std::vector<std::unique_ptr<JobRun>> ended;
    {
      absl::MutexLock lock(&mutex_);
      if (stopping_ && runs_.empty() && ended_runs_.empty()) return;
      if (!stopping_) StartQueuedJobs();
      const auto something_to_do = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return work_may_wait_ || !ended_runs_.empty() || (stopping_ && runs_.empty());
      };
      mutex_.AwaitWithTimeout(absl::Condition(&something_to_do), kTick);
      work_may_wait_ = false;
      ended.swap(ended_runs_);
    }
    ended.clear();  // joins, outside of the lock that their last act takes
    context_.ledger.hub().WakeAll();
    const absl::Time now = absl::Now();
    if (now >= next_tidy) {
      next_tidy = now + kTidyInterval;
      const absl::Status tidied = TidyUp(now);
      if (!tidied.ok()) PTQ_LOG(Warning) << "tidying up: " << Message(tidied);
    }
    if (now >= next_trim) {
      next_trim = now + kTrimInterval;
      TrimHeap();
    }
    const absl::Status expired = ExpireJobs(now);
    if (!expired.ok()) PTQ_LOG(Warning) << "expiring jobs: " << Message(expired);
  }
}

void JobManager::StartQueuedJobs() {
  while (static_cast<int>(runs_.size()) < options_.max_concurrent_jobs) {
    const auto next = context_.ledger.store().NextQueuedJob();
    if (!next.ok()) PTQ_LOG(Error) << "reading the queue: " << Message(next.status());
    if (!next.ok() || !next->has_value()) return;
    const std::string key = JobLedger::Key((*next)->tenant, (*next)->id);
    // Its last attempt has queued it again but not ended yet; its end wakes us.
    if (runs_.count(key) != 0) return;
    auto pending = context_.ledger.Apply((*next)->tenant, (*next)->id,
                                         [](JobRecord& record, std::vector<v1::JobEvent>&) {
                                           return SetJobState(record.job, Job::PENDING);
                                         });
    if (!pending.ok()) {
      // Cancelled in between, or a full disk: the next tick tries again.
      PTQ_LOG(Warning) << "starting job " << (*next)->id << ": " << Message(pending.status());
      return;
    }
    runs_[key] = std::make_unique<JobRun>(context_, *std::move(pending), [this, key] {
      absl::MutexLock lock(&mutex_);
      const auto entry = runs_.find(key);
      ended_runs_.push_back(std::move(entry->second));
      runs_.erase(entry);
    });
  }
}

void JobManager::RequestStop(const std::string& key, StopReason reason) {
  absl::MutexLock lock(&mutex_);
  const auto entry = runs_.find(key);
  if (entry != runs_.end()) entry->second->RequestStop(reason);
}

absl::Status JobManager::AwaitRun(const std::string& key) {
  absl::MutexLock lock(&mutex_);
  const auto gone = [this, &key]()
                        ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return runs_.count(key) == 0; };
  if (mutex_.AwaitWithTimeout(absl::Condition(&gone), kRunEndTimeout)) return absl::OkStatus();
  return absl::UnavailableError("the job's last attempt is still ending; try again");
}

absl::StatusOr<JobRecord> JobManager::Submit(JobRecord record,
                                             const std::optional<RequestKey>& request) {
  JobStore& store = context_.ledger.store();
  const std::string tenant = record.tenant;
  std::string id;
  std::optional<JobRecord> earlier;
  if (record.job.spec().cache_policy() != v1::SKIP_LOOKUP) {
    PTQ_ASSIGN_OR_RETURN(earlier, store.FindReusableJob(tenant, record.job.action_digest().hash()));
  }
  if (earlier.has_value()) {
    // Nothing is collected between the look at the artifacts and the row that names them.
    const absl::Status reused = context_.blobs.Publish({}, [&]() -> absl::Status {
      PTQ_ASSIGN_OR_RETURN(const auto files,
                           store.ListArtifacts(tenant, earlier->id, "", kAllArtifacts));
      std::vector<v1::Digest> digests;
      for (const v1::FileNode& file : files) digests.push_back(file.digest());
      PTQ_ASSIGN_OR_RETURN(const auto missing, context_.blobs.MissingBlobs(tenant, digests));
      if (files.empty() || !missing.empty()) return absl::NotFoundError("the result is gone");
      JobRecord copy = record;
      const v1::QuantizationJob& source = earlier->job;
      copy.job.set_state(Job::SUCCEEDED);
      copy.job.set_reused(true);
      *copy.job.mutable_progress() = source.progress();
      *copy.job.mutable_result_digest() = source.result_digest();
      *copy.job.mutable_start_time() = copy.job.create_time();
      *copy.job.mutable_end_time() = copy.job.create_time();
      *copy.job.mutable_warnings() = source.warnings();
      if (copy.job.spec().has_ttl_after_finished()) {
        *copy.job.mutable_expire_time() =
            ToProtoTime(FromProtoTime(copy.job.create_time()) +
                        FromProtoDuration(copy.job.spec().ttl_after_finished()));
      }
      PTQ_ASSIGN_OR_RETURN(id, context_.ledger.Insert(std::move(copy), files, request));
      return absl::OkStatus();
    });
    if (!reused.ok() && !absl::IsNotFound(reused)) return reused;
  }
  if (id.empty()) {
    PTQ_ASSIGN_OR_RETURN(id, context_.ledger.Insert(std::move(record), {}, request));
    absl::MutexLock lock(&mutex_);
    work_may_wait_ = true;
  }
  return context_.ledger.Get(tenant, id);
}

absl::Status JobManager::Cancel(const std::string& tenant, const std::string& id,
                                const std::string& etag) {
  bool without_worker = false;
  const auto changed = context_.ledger.Apply(
      tenant, id, [&](JobRecord& record, std::vector<v1::JobEvent>&) -> absl::Status {
        PTQ_RETURN_IF_ERROR(CheckEtag(record.job, etag));
        const JobState state = record.job.state();
        if (IsEnded(state)) {
          return WrongState(record.job.name(), "JOB_ENDED",
                            "the job has already ended: it is " + Job::State_Name(state));
        }
        if (state == Job::CANCELLING) return absl::OkStatus();
        without_worker = state == Job::QUEUED || state == Job::PAUSED;
        return SetJobState(record.job, Job::CANCELLING);
      });
  PTQ_RETURN_IF_ERROR(changed.status());
  if (without_worker) {
    return context_.ledger
        .Apply(tenant, id,
               [](JobRecord& record, std::vector<v1::JobEvent>&) {
                 return SetJobState(record.job, Job::CANCELLED);
               })
        .status();
  }
  RequestStop(JobLedger::Key(tenant, id), StopReason::kCancel);
  return absl::OkStatus();
}

absl::StatusOr<JobRecord> JobManager::Resume(const std::string& tenant, const std::string& id,
                                             const std::string& etag) {
  PTQ_RETURN_IF_ERROR(AwaitRun(JobLedger::Key(tenant, id)));
  PTQ_ASSIGN_OR_RETURN(
      const JobRecord changed,
      context_.ledger.Apply(
          tenant, id, [&](JobRecord& record, std::vector<v1::JobEvent>&) -> absl::Status {
            PTQ_RETURN_IF_ERROR(CheckEtag(record.job, etag));
            const JobState state = record.job.state();
            if (state != Job::PAUSED && state != Job::FAILED && state != Job::CANCELLED) {
              return WrongState(record.job.name(), "NOT_RESUMABLE",
                                "only a PAUSED, FAILED or CANCELLED job can be resumed; this one "
                                "is " +
                                    Job::State_Name(state));
            }
            PTQ_RETURN_IF_ERROR(SetJobState(record.job, Job::QUEUED));
            record.lost_workers = 0;
            record.job.set_attempt(record.job.attempt() + 1);
            record.job.clear_error();
            record.job.clear_start_time();
            record.job.clear_end_time();
            record.job.clear_expire_time();
            return absl::OkStatus();
          }));
  absl::MutexLock lock(&mutex_);
  work_may_wait_ = true;
  return changed;
}

absl::Status JobManager::Delete(const std::string& tenant, const std::string& id) {
  PTQ_ASSIGN_OR_RETURN(JobRecord record, context_.ledger.Get(tenant, id));
  if (!IsEnded(record.job.state())) {
    return WrongState(
        record.job.name(), "JOB_NOT_ENDED",
        "the job is " + Job::State_Name(record.job.state()) + "; cancel it before deleting it");
  }
  PTQ_RETURN_IF_ERROR(AwaitRun(JobLedger::Key(tenant, id)));
  auto hashes = context_.ledger.store().DeleteJob(tenant, id);
  if (absl::IsNotFound(hashes.status()))
    return ResourceNotFound("quantization job", record.job.name());
  PTQ_RETURN_IF_ERROR(hashes.status());
  context_.ledger.hub().Notify(JobLedger::Key(tenant, id));
  PTQ_RETURN_IF_ERROR(RemoveTree(context_.JobDir(id)));
  return context_.blobs.Collect(tenant, *hashes);
}

absl::Status JobManager::ExpireJobs(absl::Time now) {
  PTQ_ASSIGN_OR_RETURN(const auto expired, context_.ledger.store().ExpiredJobs(now));
  for (const JobRecord& job : expired) {
    PTQ_ASSIGN_OR_RETURN(const auto files, context_.ledger.store().ListArtifacts(
                                               job.tenant, job.id, "", kAllArtifacts));
    std::vector<std::string> hashes;
    for (const v1::FileNode& file : files) hashes.push_back(file.digest().hash());
    const std::vector<v1::FileNode> none;
    PTQ_RETURN_IF_ERROR(context_.ledger
                            .Apply(
                                job.tenant, job.id,
                                [](JobRecord& record, std::vector<v1::JobEvent>&) {
                                  return SetJobState(record.job, Job::EXPIRED);
                                },
                                &none)
                            .status());
    PTQ_RETURN_IF_ERROR(RemoveTree(context_.JobDir(job.id)));
    PTQ_RETURN_IF_ERROR(context_.blobs.Collect(job.tenant, hashes));
  }
  return absl::OkStatus();
}

absl::Status JobManager::TidyUp(absl::Time now) {
  PTQ_RETURN_IF_ERROR(context_.blobs.CollectAbandonedUploads(now, options_.abandoned_age));
  PTQ_RETURN_IF_ERROR(context_.blobs.CollectStale(now, options_.abandoned_age));
  PTQ_RETURN_IF_ERROR(context_.ledger.store().ForgetRequests(now - options_.request_age));
  return absl::OkStatus();
}

}  // namespace ptq
