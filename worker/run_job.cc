#include "worker/run_job.h"

#include <c10/core/ScalarType.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "absl/strings/str_format.h"
#include "algorithms/cuda/cuda_runtime.h"
#include "common/file.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "common/torch_status.h"
#include "worker/convert.h"
#include "worker/device.h"
#include "worker/engine_version.h"
#include "worker/input_digests.h"
#include "worker/pipeline.h"
#include "worker/process_memory.h"
#include "worker/report.h"
#include "worker/stop_signals.h"

namespace ptq {
namespace {

constexpr size_t kMaxMessage = 1000;

// What went wrong, as one line that ends with what to do where we know it.
std::string Sentence(const absl::Status& status) {
  std::string message = Message(status);
  std::replace(message.begin(), message.end(), '\n', ' ');
  if (message.size() > kMaxMessage) message.resize(kMaxMessage);
  if (!absl::IsResourceExhausted(status)) return message;
  const bool disk = message.find("No space left") != std::string::npos ||
                    message.find("quota") != std::string::npos ||
                    message.find("File too large") != std::string::npos;
  return message + (disk ? "; free disk space and run the same job again, it continues after the "
                           "last finished block"
                         : "; lower sequence_length, samples or auto-round's batch_size "
                           "and fisher_tokens, or use a machine with more memory");
}

// A GPU that has failed fails every call of the process from then on: what the job ran into last
// can be called anything, so the device is asked. kUnavailable: another process may fare better.
absl::Status BlameFailedGpu(const absl::Status& status) {
  const absl::Status gpu = SynchronizeCuda();
  if (gpu.ok()) return status;
  return absl::UnavailableError(
      "the GPU failed (" + Message(gpu) + ") where the job said: " + Message(status) +
      "; finished blocks are kept: run the same job again, and if that fails too look for Xid "
      "errors "
      "in the machine's kernel log and at nvidia-smi, or choose another GPU");
}

absl::StatusOr<JobSpec> ReadSpec(const RunOptions& options) {
  PTQ_ASSIGN_OR_RETURN(const std::string text, ReadFile(options.spec_path));
  absl::StatusOr<JobSpec> spec = ParseJobSpec(text);
  if (!spec.ok()) return Annotate(spec.status(), options.spec_path);
  return spec;
}

// But for the inputs, which come later.
JobIdentity MakeIdentity(const JobPlan& plan) {
  JobIdentity identity;
  identity.spec = SpecWithoutPaths(plan.spec);
  identity.environment = {{"engine_version", EngineVersion()},
                          {"device", plan.compute.device.is_cpu() ? "cpu" : "cuda"},
                          {"compute_dtype", DtypeLabel(plan.compute.dtype)}};
  if (plan.spec.algorithm == Algorithm::kAutoRound) {
    identity.environment["tuning_precision"] = plan.TuningPrecisionLabel();
  }
  return identity;
}

void SayStarted(EventWriter& events, const JobPlan& plan, int64_t resumed) {
  JobEvent event;
  event.type = JobEvent::Type::kStarted;
  event.blocks_total = plan.inspection.config.num_hidden_layers;
  event.blocks_resumed = std::min(resumed, event.blocks_total);  // the head may be another record
  event.device = DeviceLabel(plan.compute.device);
  events.Write(std::move(event));
}

class JobRun {
 public:
  JobRun(const RunOptions& options, EventWriter& events, const CancellationToken& cancel)
      : options_(options), events_(events), cancel_(cancel) {}

  // The result's digest.
  absl::StatusOr<std::string> Run();
  // Whether Run ended before weights were of use: none was read, or the inputs can't be.
  bool preparing() const { return preparing_; }

 private:
  absl::StatusOr<std::string> RunPlan(const JobPlan& plan, InputDigests& inputs);
  const RunOptions& options_;
  EventWriter& events_;
  const CancellationToken& cancel_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  bool preparing_ = true;
};

absl::StatusOr<std::string> JobRun::Run() {
  PTQ_ASSIGN_OR_RETURN(const JobSpec spec, ReadSpec(options_));
  // All that a conversion refuses is a matter of its input.
  if (spec.task == Task::kConvert) return RunConvertJob(spec, options_.output, events_, cancel_);
  InputDigests inputs(spec, cancel_);
  PTQ_ASSIGN_OR_RETURN(const JobPlan plan, PlanJob(spec));
  absl::StatusOr<std::string> digest = RunPlan(plan, inputs);
  if (!digest.ok() && inputs.Check() == digest.status()) preparing_ = true;
  return digest;
}

absl::StatusOr<std::string> JobRun::RunPlan(const JobPlan& plan, InputDigests& inputs) {
  events_.Phase("load", 0);
  const auto wait = [&] {
    return inputs.Wait([this](double fraction) { events_.Phase("load", fraction); });
  };
  PTQ_ASSIGN_OR_RETURN(const auto folder,
                       JobFolder::Open(options_.output, MakeIdentity(plan), wait, cancel_));
  preparing_ = false;
  for (const std::string& warning : plan.warnings) events_.Log("warning", warning);
  if (folder->finished_report()) {
    SayStarted(events_, plan, plan.inspection.config.num_hidden_layers);
    events_.Log("info", "the folder holds this job's finished result");
    return JsonString(*folder->finished_report(), "result_digest");
  }
  // The head may be among them, which is no block.
  SayStarted(events_, plan,
             std::min(static_cast<int64_t>(folder->finished_blocks().size()),
                      plan.inspection.config.num_hidden_layers));
  for (const std::string& warning : folder->warnings()) events_.Log("warning", warning);
  const BaselineCache cache(options_.cache_dir);
  Pipeline pipeline(plan, inputs, *folder, cache, events_, cancel_);
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start_;
  return pipeline.Run(spent.count());
}

}  // namespace

bool IsRefusal(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kOutOfRange:
      return true;
    default:
      return false;
  }
}

int FinishRun(const absl::StatusOr<std::string>& digest, bool refused, EventWriter& events,
              const CancellationToken& cancel) {
  JobEvent event;
  if (digest.ok()) {
    event.type = JobEvent::Type::kSucceeded;
    event.result_digest = *digest;
    event.host_peak_bytes = HostPeakBytes();
    event.device_peak_bytes = CudaPeakMemoryBytes();
    events.Write(std::move(event));
    return kExitDone;
  }
  // A stop may surface as whatever the interrupted call reports.
  if (cancel.IsCancelled()) {
    event.type = JobEvent::Type::kCancelled;
    events.Write(std::move(event));
    return kStoppedExitStatus;
  }
  event.type = JobEvent::Type::kFailed;
  event.code = digest.status().code();
  event.message = Sentence(digest.status());
  PTQ_LOG(Error) << event.message;
  events.Write(std::move(event));
  return refused ? kExitBadSpec : kExitFailed;
}

int RunJob(const RunOptions& options, EventWriter& events, const CancellationToken& cancel) {
  JobRun run(options, events, cancel);
  absl::StatusOr<std::string> digest = CatchTorchErrors("the worker", [&] { return run.Run(); });
  if (!digest.ok() && !cancel.IsCancelled()) digest = BlameFailedGpu(digest.status());
  return FinishRun(digest, run.preparing() && IsRefusal(digest.status()), events, cancel);
}

}  // namespace ptq
