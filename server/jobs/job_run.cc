#include "server/jobs/job_run.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/file.h"
#include "common/json.h"
#include "common/logging.h"
#include "common/sha256.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "server/errors/status_details.h"
#include "server/jobs/job_logs.h"
#include "server/jobs/job_state.h"
#include "server/jobs/resource_names.h"
#include "server/jobs/spec_conversion.h"
#include "server/store/proto_time.h"
#include "worker/spec/job_spec.h"

namespace ptq {
namespace {

using Job = v1::QuantizationJob;

constexpr int kDefaultMaxAttempts = 3;
constexpr int kMaxWarnings = 100;
constexpr absl::Duration kPollInterval = absl::Milliseconds(100);
constexpr absl::Duration kRetryInterval = absl::Seconds(1);

bool IsLast(const JobEvent& event) {
  return event.type == JobEvent::Type::kSucceeded || event.type == JobEvent::Type::kFailed ||
         event.type == JobEvent::Type::kCancelled;
}

v1::JobEvent BlockEvent(const JobEvent& event) {
  v1::JobEvent proto;
  v1::BlockResult& block = *proto.mutable_block();
  block.set_block(static_cast<int32_t>(event.block));
  block.set_name(event.block_name);
  block.set_seconds(event.seconds);
  if (event.loss_first.has_value()) block.set_loss_first(*event.loss_first);
  if (event.loss_best.has_value()) block.set_loss_best(*event.loss_best);
  return proto;
}

void AddWarning(v1::QuantizationJob& job, const std::string& message) {
  if (job.warnings_size() >= kMaxWarnings) return;
  for (const std::string& known : job.warnings()) {
    if (known == message) return;
  }
  job.add_warnings(message);
}

// Links an input into the job's folder after reading all of it again; returns its resolved files.
absl::StatusOr<ResolvedSource> PinInput(InputSources& sources, const std::string& tenant,
                                        InputKind kind, const v1::Source& source,
                                        const v1::Digest& expected, const std::string& folder,
                                        const CancellationToken& stop) {
  PTQ_ASSIGN_OR_RETURN(ResolvedSource resolved, sources.Resolve(tenant, kind, source));
  if (resolved.root_digest.hash() != expected.hash()) {
    return WithReason(absl::FailedPreconditionError(source.server_path() +
                                                    " changed on the server's disk since it was "
                                                    "registered; register it again"),
                      "INPUT_CHANGED");
  }
  PTQ_RETURN_IF_ERROR(sources.Verify(resolved, stop));
  PTQ_RETURN_IF_ERROR(sources.LinkInto(resolved, folder));
  return resolved;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ListOutputFiles(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code error;
  std::filesystem::recursive_directory_iterator entries(folder, error);
  if (error) return ErrnoStatus(error.value(), folder);
  for (; entries != std::filesystem::recursive_directory_iterator(); entries.increment(error)) {
    if (error) return ErrnoStatus(error.value(), folder);
    if (entries->path().filename().string().front() == '.') {
      entries.disable_recursion_pending();
    } else if (entries->symlink_status(error).type() == std::filesystem::file_type::regular) {
      files.push_back(entries->path().lexically_relative(folder).string());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

JobRun::JobRun(JobRunContext& context, JobRecord job, std::function<void()> done)
    : context_(context),
      job_(std::move(job)),
      job_dir_(context.JobDir(job_.id)),
      log_path_(LogPath(job_dir_, job_.job.attempt())),
      done_(std::move(done)),
      thread_([this] {
        Run();
        done_();
      }) {}

JobRun::~JobRun() { thread_.join(); }

void JobRun::RequestStop(StopReason reason) {
  StopReason current = stop_.load();
  while (reason > current && !stop_.compare_exchange_weak(current, reason)) {
  }
  stop_token_.Cancel();
}

void JobRun::Run() {
  absl::StatusOr<WorkerCommand> command = Prepare();
  std::unique_ptr<WorkerProcess> process;
  absl::Status status = command.status();
  if (status.ok()) {
    auto launched = context_.launcher.Launch(*command);
    status = launched.status();
    if (launched.ok()) process = *std::move(launched);
  }
  AttemptOutcome outcome;
  if (!status.ok()) {
    const StopReason stop = stop_.load();
    outcome = stop == StopReason::kCancel        ? AttemptOutcome{Job::CANCELLED, {}}
              : stop == StopReason::kServerStops ? AttemptOutcome{Job::QUEUED, {}}
                                                 : AttemptOutcome{Job::FAILED, status};
  } else {
    Persist([&] { return MarkRunning(*process); }, Retry::kAnyFault);
    AttemptEnd end = Follow(*process);
    process.reset();
    if (!end.last_event.has_value()) end.last_log_line = LastLogLine(log_path_);
    outcome = DecideOutcome(end);
    if (outcome.next == Job::SUCCEEDED) {
      absl::Status published;
      Persist([&] { return published = Publish(*end.last_event); }, Retry::kFullDisk);
      if (published.ok()) return;
      if (absl::IsResourceExhausted(published)) return;  // the server stops; the next start goes on
      // Not a full disk: the output itself is wrong, or somebody asked to stop.
      outcome = {Job::FAILED, Annotate(published, "publishing the result")};
      if (absl::IsCancelled(published)) {
        outcome = {stop_.load() == StopReason::kCancel ? Job::CANCELLED : Job::QUEUED, {}};
      }
    }
  }
  Persist([&] { return Conclude(outcome); }, Retry::kAnyFault);
}

absl::StatusOr<WorkerCommand> JobRun::Prepare() {
  const std::string& tenant = job_.tenant;
  const std::string inputs_dir = JoinPath(job_dir_, "inputs");
  PTQ_RETURN_IF_ERROR(RemoveTree(inputs_dir));
  PTQ_RETURN_IF_ERROR(MakeDirectories(inputs_dir));
  PTQ_RETURN_IF_ERROR(MakeDirectories(LogFolder(job_dir_)));
  PTQ_RETURN_IF_ERROR(MakeDirectories(context_.OutputDir(job_.id)));
  const std::string cache_dir = JoinPath(context_.data_dir, "cache");
  PTQ_RETURN_IF_ERROR(MakeDirectories(cache_dir));

  PTQ_ASSIGN_OR_RETURN(JobSpec spec, ToJobSpec(job_.job.spec()));
  PTQ_ASSIGN_OR_RETURN(const ResourceName model_name,
                       ParseResourceName(spec.model, "models", "spec.model"));
  PTQ_ASSIGN_OR_RETURN(const v1::Model model, context_.inputs.GetModel(tenant, model_name.id));
  spec.model = JoinPath(inputs_dir, "model");
  PTQ_RETURN_IF_ERROR(PinInput(context_.inputs.sources(), tenant, InputKind::kModel, model.source(),
                               model.root_digest(), spec.model, stop_token_)
                          .status());
  for (auto [field, role] :
       {std::pair(&spec.calibration, "calibration"), std::pair(&spec.evaluation, "evaluation")}) {
    if (field->empty()) continue;
    PTQ_ASSIGN_OR_RETURN(const ResourceName name, ParseResourceName(*field, "datasets", role));
    PTQ_ASSIGN_OR_RETURN(const v1::Dataset dataset, context_.inputs.GetDataset(tenant, name.id));
    const std::string folder = JoinPath(inputs_dir, role);
    PTQ_ASSIGN_OR_RETURN(const ResolvedSource source,
                         PinInput(context_.inputs.sources(), tenant, InputKind::kDataset,
                                  dataset.source(), dataset.root_digest(), folder, stop_token_));
    *field = JoinPath(folder, source.files.front().path);
  }
  PTQ_RETURN_IF_ERROR(stop_token_.Check());
  const std::string spec_path = JoinPath(job_dir_, "job.json");
  PTQ_RETURN_IF_ERROR(WriteFileAtomically(spec_path, DumpJsonPretty(JobSpecToJson(spec))));
  return WorkerCommand{spec_path, context_.OutputDir(job_.id), cache_dir, log_path_};
}

absl::Status JobRun::MarkRunning(const WorkerProcess& process) {
  return context_.ledger
      .Apply(job_.tenant, job_.id,
             [&](JobRecord& record, std::vector<v1::JobEvent>&) -> absl::Status {
               record.worker_handle = process.handle();
               record.job.set_worker(process.description());
               if (!record.job.has_start_time()) {
                 *record.job.mutable_start_time() = ToProtoTime(absl::Now());
               }
               // Cancelled while it was being started: Follow stops it at once.
               if (record.job.state() == Job::CANCELLING) return absl::OkStatus();
               return SetJobState(record.job, Job::RUNNING);
             })
      .status();
}

absl::Time JobRun::RunDeadline() const {
  if (!job_.job.spec().has_max_run_duration()) return absl::InfiniteFuture();
  return absl::Now() + FromProtoDuration(job_.job.spec().max_run_duration());
}

AttemptEnd JobRun::Follow(WorkerProcess& process) {
  const absl::Time run_deadline = RunDeadline();
  absl::Time kill_time = absl::InfiniteFuture();
  bool complained = false;
  while (true) {
    const absl::Time now = absl::Now();
    if (now >= run_deadline) RequestStop(StopReason::kDeadline);
    if (stop_token_.IsCancelled() && kill_time == absl::InfiniteFuture()) {
      process.RequestStop();
      kill_time = now + context_.stop_grace;
    }
    if (now >= kill_time) {
      process.Kill();
      break;
    }
    auto line = process.ReadLine(now + kPollInterval);
    if (!line.ok()) {
      if (!absl::IsOutOfRange(line.status())) {
        PTQ_LOG(Error) << "job " << job_.id << ": " << Message(line.status());
        process.Kill();
      }
      break;
    }
    if (line->has_value()) {
      auto json = ParseJson(**line);
      auto event = json.ok() ? JobEventFromJson(*json) : json.status();
      if (event.ok()) {
        HandleEvent(*event);
      } else if (!complained) {
        complained = true;
        PTQ_LOG(Warning) << "job " << job_.id
                         << ": a line of the worker is no event: " << Message(event.status());
      }
    }
    if (!unsaved_.empty() && absl::Now() - last_saved_ >= context_.progress_interval) {
      StoreProgress({});
    }
  }
  AttemptEnd end;
  end.exit = process.Wait();
  end.last_event = last_event_;
  end.stop = stop_.load();
  return end;
}

void JobRun::HandleEvent(const JobEvent& event) {
  if (IsLast(event)) {
    last_event_ = event;
    return;
  }
  if (event.type == JobEvent::Type::kLog && event.severity != "warning") return;
  unsaved_.push_back(event);
  const bool at_once = event.type != JobEvent::Type::kPhase;
  if (at_once || absl::Now() - last_saved_ >= context_.progress_interval) {
    std::vector<v1::JobEvent> events;
    if (event.type == JobEvent::Type::kBlockDone) events.push_back(BlockEvent(event));
    StoreProgress(std::move(events));
  }
}

// What cannot be stored now is progress only; the next change brings it along.
void JobRun::StoreProgress(std::vector<v1::JobEvent> events) {
  const auto stored = context_.ledger.Apply(
      job_.tenant, job_.id, [&](JobRecord& record, std::vector<v1::JobEvent>& out) {
        for (const JobEvent& event : unsaved_) {
          tracker_.Apply(event, *record.job.mutable_progress());
          if (event.type == JobEvent::Type::kLog) AddWarning(record.job, event.message);
        }
        out = std::move(events);
        return absl::OkStatus();
      });
  if (!stored.ok()) PTQ_LOG(Warning) << "job " << job_.id << ": " << Message(stored.status());
  unsaved_.clear();
  last_saved_ = absl::Now();
}

absl::StatusOr<std::vector<BlobStore::NewBlob>> JobRun::HashOutput(
    std::vector<v1::FileNode>* files) {
  const std::string folder = context_.OutputDir(job_.id);
  std::vector<BlobStore::NewBlob> blobs;
  files->clear();
  PTQ_ASSIGN_OR_RETURN(const auto names, ListOutputFiles(folder));
  // A finished result outweighs a cancellation, unless taking it in delays that for too long.
  const absl::Time patience = absl::Now() + context_.stop_grace;
  for (const std::string& name : names) {
    const StopReason stop = stop_.load();
    if (stop == StopReason::kServerStops ||
        (stop == StopReason::kCancel && absl::Now() > patience)) {
      return absl::CancelledError("asked to stop while the result was being taken in");
    }
    const std::string path = JoinPath(folder, name);
    PTQ_ASSIGN_OR_RETURN(const auto file, ReadableFile::Open(path));
    v1::FileNode& node = files->emplace_back();
    node.set_path(name);
    node.mutable_digest()->set_size_bytes(file.size());
    PTQ_ASSIGN_OR_RETURN(*node.mutable_digest()->mutable_hash(), Sha256File(path));
    blobs.push_back({path, node.digest()});
  }
  return blobs;
}

absl::Status JobRun::Publish(const JobEvent& succeeded) {
  std::vector<v1::FileNode> files;
  PTQ_ASSIGN_OR_RETURN(const auto blobs, HashOutput(&files));
  int64_t result_bytes = 0;
  bool has_report = false;
  for (const v1::FileNode& file : files) {
    has_report |= file.path() == "report.json";
    if (file.path() != "report.json" && file.path() != "report.html") {
      result_bytes += file.digest().size_bytes();
    }
  }
  if (!has_report || !IsSha256Hex(succeeded.result_digest)) {
    return absl::InternalError("the worker's output folder has no report.json, or no digest");
  }
  PTQ_RETURN_IF_ERROR(context_.blobs.Publish(blobs, [&] {
    return context_.ledger
        .Apply(
            job_.tenant, job_.id,
            [&](JobRecord& record, std::vector<v1::JobEvent>&) {
              for (const JobEvent& event : unsaved_) {
                tracker_.Apply(event, *record.job.mutable_progress());
              }
              v1::Progress& progress = *record.job.mutable_progress();
              tracker_.Apply(succeeded, progress);
              progress.set_blocks_done(progress.blocks_total());
              progress.set_checkpoint_block(progress.blocks_total());
              record.job.mutable_result_digest()->set_hash(succeeded.result_digest);
              record.job.mutable_result_digest()->set_size_bytes(result_bytes);
              return SetJobState(record.job, Job::SUCCEEDED);
            },
            &files)
        .status();
  }));
  PTQ_LOG(Info) << "job " << job_.id << " succeeded";
  // The blobs are further names of the same files.
  for (const char* name : {"output", "inputs", "job.json"}) {
    RemoveTree(JoinPath(job_dir_, name)).IgnoreError();
  }
  return absl::OkStatus();
}

absl::Status JobRun::Conclude(const AttemptOutcome& outcome) {
  const int limit = job_.job.spec().failure_policy().max_attempts() > 0
                        ? job_.job.spec().failure_policy().max_attempts()
                        : kDefaultMaxAttempts;
  auto concluded = context_.ledger.Apply(
      job_.tenant, job_.id, [&](JobRecord& record, std::vector<v1::JobEvent>&) -> absl::Status {
        JobState next = outcome.next;
        absl::Status error = outcome.error;
        if (outcome.worker_lost && ++record.lost_workers >= limit) {
          next = Job::FAILED;
          error = absl::Status(error.code(),
                               absl::StrFormat("%s; that was attempt %d of %d", Message(error),
                                               record.lost_workers, limit));
          error = WithReason(error, "WORKER_LOST");
        }
        if (record.job.state() == Job::CANCELLING && next == Job::QUEUED) next = Job::CANCELLED;
        PTQ_RETURN_IF_ERROR(SetJobState(record.job, next));
        record.worker_handle.clear();
        record.job.clear_worker();
        if (next == Job::FAILED) *record.job.mutable_error() = ToRpcStatus(error);
        if (next == Job::QUEUED && outcome.worker_lost) {
          record.job.set_attempt(record.job.attempt() + 1);
          AddWarning(record.job,
                     absl::StrFormat("attempt %d: %s; continued after its last finished block",
                                     record.job.attempt() - 1, Message(error)));
        }
        return absl::OkStatus();
      });
  PTQ_RETURN_IF_ERROR(concluded.status());
  RemoveTree(JoinPath(job_dir_, "inputs")).IgnoreError();  // linked anew by the next attempt
  PTQ_LOG(Info) << "job " << job_.id << " is " << Job::State_Name(concluded->job.state())
                << (outcome.error.ok() ? "" : ": ") << Message(outcome.error);
  return absl::OkStatus();
}

void JobRun::Persist(const std::function<absl::Status()>& step, Retry retry) {
  while (true) {
    const absl::Status status = step();
    const bool may_pass = absl::IsResourceExhausted(status) ||
                          (retry == Retry::kAnyFault && absl::IsInternal(status));
    if (status.ok()) return;
    PTQ_LOG(Warning) << "job " << job_.id << ": " << Message(status);
    // When the server stops, the row stays as it is, and the next start queues the job again.
    if (!may_pass || stop_.load() == StopReason::kServerStops) return;
    absl::SleepFor(kRetryInterval);
  }
}

}  // namespace ptq
