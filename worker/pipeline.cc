#include "worker/pipeline.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "algorithms/auto_round/auto_round.h"
#include "algorithms/cuda/cuda_runtime.h"
#include "algorithms/rtn/rtn.h"
#include "common/file.h"
#include "common/logging.h"
#include "common/seed.h"
#include "common/sha256.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "common/torch_status.h"
#include "observers/fisher_observer.h"
#include "observers/output_error.h"
#include "worker/device.h"
#include "worker/engine_version.h"
#include "worker/evaluation.h"
#include "worker/export_formats.h"
#include "worker/loader_report.h"
#include "worker/process_memory.h"
#include "worker/report_html.h"
#include "worker/vocabulary_parts.h"

namespace ptq {
namespace {

class Stopwatch {
 public:
  double Seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  // Seconds since the last lap or the start.
  double Lap() {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(lap_, now)).count();
  }

 private:
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point lap_ = start_;
};

// Of the outputs of all blocks that the Fisher pass keeps in memory on a CPU; the rest goes to a
// file.
constexpr int64_t kFisherHostBytes = int64_t{1} << 30;

// So often micro-batches are halved for one block that the device's memory was too small for.
constexpr int kMostHalvings = 2;

// A copy in page-locked memory of what comes from a device or goes there. Copying a block's codes
// to memory that is new to the process takes over 100 ms, to this, which the allocator keeps for
// the next block, 6.
at::Tensor PageLocked(const at::Tensor& tensor) {
  const auto options = tensor.options().device(at::kCPU).pinned_memory(true);
  return at::empty(tensor.sizes(), options).copy_(tensor);
}

// On a CPU no second block's weights are held: the page cache has them.
BlockLoaderOptions LoaderOptions(const ComputeOptions& compute, const MemoryPlan& memory) {
  if (compute.device.is_cpu()) return {};
  return {.stage = true, .kept_bytes = memory.kept_weights};
}

// Blocks that are written at a time, while another one is worked on. On a GPU their codes lie in
// page-locked memory; on a CPU a block takes as long as its shard, and memory counts.
int64_t BlocksInWriting(const JobPlan& plan) {
  if (plan.compute.device.is_cpu()) return 1;
  constexpr int64_t kBytes = int64_t{1} << 30;
  int64_t codes = 0;
  for (const EffectiveScheme& module : plan.schemes) {
    if (module.scheme && module.place == ModulePlace::kBlock) {
      codes += module.out_features * module.in_features;
    }
  }
  const int64_t block = std::max<int64_t>(1, codes / plan.inspection.config.num_hidden_layers);
  return std::clamp<int64_t>(kBytes / block, 2, 4);
}

// The job's records beside the original checkpoint: what formats are written from.
class JobCheckpoint final : public QuantizedCheckpoint {
 public:
  JobCheckpoint(const RecordFolder& records, const CheckpointReader& original)
      : records_(records), original_(original) {}
  const ExportPlan& plan() const override { return records_.plan(); }
  const CheckpointReader& plain() const override { return original_; }
  absl::StatusOr<std::vector<QuantizedModule>> ReadBlock(int64_t block) const override {
    return records_.ReadBlock(block);
  }

 private:
  const RecordFolder& records_;
  const CheckpointReader& original_;
};

std::string ModelDigest(const Json& inputs) { return Sha256Hex(DumpJson(inputs["model"])); }

// Everything that the original model's hidden states depend on.
std::string BaselineKey(const JobIdentity& identity, const at::Tensor& windows) {
  const std::string tokens =
      Sha256Hex({static_cast<const char*>(windows.const_data_ptr()), windows.nbytes()});
  Json environment = identity.environment;
  environment.erase("tuning_precision");
  return Sha256Hex(DumpJson(Json{{"model", ModelDigest(identity.inputs)},
                                 {"tokens", tokens},
                                 {"windows", windows.size(0)},
                                 {"length", windows.size(1)},
                                 {"environment", environment}}));
}

}  // namespace

absl::StatusOr<std::string> Pipeline::Run(double load_seconds) {
  c10::NoGradGuard no_grad;
  Stopwatch total;
  warnings_ = folder_.warnings();
  load_seconds_ = load_seconds;
  PTQ_RETURN_IF_ERROR(CatchTorchErrors("load", [&] { return Load(); }));
  load_seconds_ += total.Seconds();
  for (;;) {
    const absl::Status observed = ObserveFisher(/*chains_begin=*/true);
    if (observed.ok()) break;
    PTQ_RETURN_IF_ERROR(TakeLessMemory(kFisherPass, observed));
    PTQ_RETURN_IF_ERROR(CatchTorchErrors("load", [&] { return LoadCalibration(); }));
  }
  const int64_t width = plan_.inspection.config.hidden_size;
  if (fisher_ != nullptr && FisherWeight(fisher_tokens_, width) < kFisherWeight) {
    warnings_.push_back(absl::StrFormat(
        "The Fisher metric is the mean over %d tokens, fewer than %d for each of %d channels: it "
        "counts half. More calibration text or --fisher-tokens would help.",
        fisher_tokens_, kFisherTokensPerChannel, width));
  }
  PTQ_RETURN_IF_ERROR(QuantizeBlocks());
  observer_.reset();
  quantizer_.reset();

  Stopwatch phase;
  events_.Phase("export", 0);
  PTQ_RETURN_IF_ERROR(outer_writing_.Wait());
  PTQ_ASSIGN_OR_RETURN(const std::vector<FileDigest> outputs,
                       CatchTorchErrors("export", [&] { return WriteFormats(); }));
  ReleaseFreeHeap();
  export_seconds_ += phase.Lap();
  events_.Phase("export", 1);
  Json evaluation(nullptr);
  if (evaluation_windows_.defined()) {
    PTQ_ASSIGN_OR_RETURN(evaluation, EvaluateResult());
    evaluate_seconds_ = phase.Lap();
  }

  std::vector<Json> blocks = folder_.finished_blocks();
  std::vector<Json> outside;
  if (embedding_scheme_ != nullptr) {
    outside.push_back(ModuleResultToJson(DescribeEmbedding(plan_, *embedding_scheme_)));
  }
  Json head(nullptr);
  if (head_scheme_ != nullptr) {
    head = std::move(blocks.back());
    blocks.pop_back();
    for (const Json& module : head["modules"]) outside.push_back(module);
  }
  const Json calibration = SummarizeCalibration(plan_.spec, blocks, &warnings_);
  std::vector<WrittenFormat> written;
  for (const std::string& format : plan_.spec.format) {
    written.push_back({format, FormatFolder(folder_.path(), plan_.spec.format, format)});
  }
  const Json loaders = JudgeFormats(written);
  ReportInputs inputs{.plan = plan_,
                      .inputs = folder_.identity().inputs,
                      .environment = folder_.identity().environment,
                      .blocks = std::move(blocks),
                      .outside_of_blocks = std::move(outside),
                      .head = std::move(head),
                      .calibration = calibration,
                      .evaluation = std::move(evaluation),
                      .loaders = loaders,
                      .outputs = outputs,
                      .warnings = warnings_,
                      .parts_resumed = parts_resumed_,
                      .load_seconds = load_seconds_,
                      .fisher_seconds = fisher_seconds_,
                      .export_seconds = export_seconds_,
                      .evaluate_seconds = evaluate_seconds_,
                      .total_seconds = load_seconds + total.Seconds() + earlier_fisher_seconds_,
                      .host_peak_bytes = HostPeakBytes(),
                      .fisher_host_peak_bytes = fisher_host_peak_bytes_,
                      .device_peak_bytes = CudaPeakMemoryBytes(),
                      .device_used_peak_bytes = CudaPeakUsedBytes(),
                      .memory = memory_};
  const Json report = BuildReport(inputs);
  PTQ_RETURN_IF_ERROR(folder_.Finish(RenderHtmlReport(report), report));
  return report["result_digest"].get<std::string>();
}

absl::Status Pipeline::Load() {
  const JobSpec& spec = plan_.spec;
  const ModelConfig& config = plan_.inspection.config;
  PTQ_ASSIGN_OR_RETURN(reader_, SafetensorsCheckpointReader::Open(plan_.inspection.index));
  PTQ_ASSIGN_OR_RETURN(model_, DecoderModel::Create(config, *reader_, plan_.compute));
  PTQ_RETURN_IF_ERROR(PlanJobMemory());
  loader_ = std::make_unique<BlockLoader>(*model_, LoaderOptions(plan_.compute, memory_));
  quantizer_ = make_quantizer_(plan_, memory_.micro_batches);
  PTQ_RETURN_IF_ERROR(OpenRecords());
  embedding_scheme_ = plan_.OutsideOfBlocks(/*head=*/false);
  head_scheme_ = plan_.OutsideOfBlocks(/*head=*/true);
  if (embedding_scheme_ != nullptr || head_scheme_ != nullptr) {
    dequantized_ = std::make_unique<DequantizedReader>(*reader_);
    for (const EffectiveScheme* scheme : {embedding_scheme_, head_scheme_}) {
      if (scheme == nullptr) continue;
      dequantized_->Replace(
          scheme->module + ".weight",
          [this, block = scheme->block]() -> absl::StatusOr<AffineQuantizedTensor> {
            PTQ_ASSIGN_OR_RETURN(auto records, records_->ReadBlock(block));
            return std::move(records.front().weight);
          });
    }
    PTQ_ASSIGN_OR_RETURN(quantized_outside_,
                         DecoderModel::Create(config, *dequantized_, plan_.compute));
  }
  PTQ_RETURN_IF_ERROR(WriteEmbedding());
  staging_ = std::make_unique<HostStaging>(BlocksInWriting(plan_));
  writing_ = std::make_unique<WriteBehind>(BlocksInWriting(plan_));
  // Before the first block, so that unusable text does not fail a job after hours of work.
  if (!spec.evaluation.empty()) {
    auto windows = LoadEvaluationWindows(spec.evaluation, spec.model, config,
                                         spec.evaluation_samples, spec.EffectiveEvaluationWindow());
    if (!windows.ok()) return Annotate(windows.status(), "evaluation");
    evaluation_windows_ = windows->ids;
  }
  const auto finished = static_cast<int64_t>(folder_.finished_blocks().size());
  return finished < part_count() ? LoadCalibration() : absl::OkStatus();
}

absl::Status Pipeline::PlanJobMemory() {
  std::optional<MicroBatches> earlier;
  if (const Json& kept = folder_.memory(); !kept.is_null()) {
    PTQ_ASSIGN_OR_RETURN(earlier, MicroBatchesFromJson(kept.value("micro_batches", Json())));
    for (const Json& warning : kept.value("warnings", Json::array())) {
      lowered_.push_back(warning.get<std::string>());
    }
    warnings_.insert(warnings_.end(), lowered_.begin(), lowered_.end());
  }
  memory_ = PlanMemory(ShapeOf(plan_), CudaMemoryInfo(), plan_.spec.low_memory, earlier);
  if (memory_.low) AvoidFragmentedCudaMemory();
  return KeepMicroBatches();
}

absl::Status Pipeline::KeepMicroBatches() {
  return folder_.SetMemory(
      {{"micro_batches", MicroBatchesToJson(memory_.micro_batches)}, {"warnings", lowered_}});
}

absl::Status Pipeline::TakeLessMemory(int64_t index, const absl::Status& status) {
  if (!IsDeviceMemoryExhausted(status)) return status;
  PTQ_RETURN_IF_ERROR(writing_->Wait());
  halvings_ = index == failed_ ? halvings_ + 1 : 1;
  failed_ = index;
  const std::string what = index == kFisherPass             ? "The Fisher pass"
                           : index == model_->block_count() ? "The head"
                                                            : absl::StrFormat("Block %d", index);
  const std::optional<MicroBatches> halves = Halved(memory_.micro_batches);
  if (halvings_ > kMostHalvings || (!halves && memory_.chains_on_host)) {
    return OutOfDeviceMemory(what);
  }
  observer_.reset();
  const MicroBatches& sizes = memory_.micro_batches = halves.value_or(memory_.micro_batches);
  // Where things lie changes no bit.
  memory_.chains_on_host = true;
  memory_.kept_weights = 0;
  memory_.fisher_outputs = 0;
  loader_ = std::make_unique<BlockLoader>(*model_, LoaderOptions(plan_.compute, memory_));
  quantizer_ = make_quantizer_(plan_, memory_.micro_batches);
  ReleaseCudaMemory();
  AvoidFragmentedCudaMemory();
  lowered_.push_back(absl::StrFormat(
      "%s did not fit into the GPU's memory: from there on, micro-batches are %d windows in "
      "forward passes, %d in the Fisher pass and %d in tuning, and activations lie in host "
      "memory.",
      what, sizes.forward, sizes.fisher, sizes.tuning));
  warnings_.push_back(lowered_.back());
  events_.Log("warning", lowered_.back());
  return KeepMicroBatches();
}

absl::Status Pipeline::OutOfDeviceMemory(const std::string& what) const {
  const CudaMemory device = CudaMemoryInfo();
  constexpr double kGiB = 1 << 30;
  return absl::ResourceExhaustedError(absl::StrFormat(
      "%s: the GPU's memory is not enough, even in micro-batches of %d windows of %d tokens: at "
      "most %.1f GiB of its %.1f GiB were in use%s",
      what, memory_.micro_batches.tuning, plan_.spec.sequence_length,
      static_cast<double>(CudaPeakUsedBytes()) / kGiB,
      static_cast<double>(device.total_bytes) / kGiB,
      plan_.spec.low_memory == LowMemory::kOn ? "" : "; try low_memory on"));
}

absl::Status Pipeline::LoadCalibration() {
  const JobSpec& spec = plan_.spec;
  if (!spec.calibration.empty()) {
    auto windows = LoadCalibrationWindows(spec.calibration, spec.model, plan_.inspection.config,
                                          spec.samples, spec.sequence_length, HeldOutWindows(spec));
    if (!windows.ok()) return Annotate(windows.status(), "calibration");
    PTQ_RETURN_IF_ERROR(cancel_.Check());
    calibration_windows_ = windows->ids;
    BlockInputOptions options{.micro_batch = memory_.micro_batches.forward,
                              .held_out = calibration_windows_.size(0) - spec.samples,
                              .statistics = NeededStatistics(spec),
                              .full_precision = NeedsTargets(spec),
                              .quantized = WithQuantizedEmbedding(),
                              .allocate = {}};
    if (memory_.chains_on_host) options.allocate = PinnedEmpty;
    PTQ_ASSIGN_OR_RETURN(observer_,
                         BlockInputObserver::Create(*model_, calibration_windows_, options));
  }
  return absl::OkStatus();
}

absl::Status Pipeline::ObserveFisher(bool chains_begin) {
  const JobSpec& spec = plan_.spec;
  const int64_t windows = FisherWindows(spec, plan_.inspection.config.hidden_size);
  if (spec.calibration.empty() || windows == 0) return absl::OkStatus();
  fisher_tokens_ = windows * spec.sequence_length;
  const Json identity = {{"tokens", fisher_tokens_}};
  fisher_ = std::make_unique<FisherFiles>(folder_.fisher_folder(), model_->block_count(), identity);
  if (fisher_->Complete()) {
    fisher_seconds_ = earlier_fisher_seconds_ = fisher_->Seconds();
    return absl::OkStatus();
  }
  if (observer_ == nullptr) return absl::OkStatus();  // every block is tuned already
  Stopwatch stopwatch;
  events_.Phase("fisher", 0);
  PTQ_RETURN_IF_ERROR(fisher_->StartOver());
  // float16 has too little range for gradients of a whole model: that pass has a model of its own.
  std::unique_ptr<DecoderModel> wide_model;
  std::unique_ptr<BlockLoader> wide_loader;
  ComputeOptions compute = plan_.compute;
  if (compute.dtype == at::kHalf) {
    compute.dtype = at::kBFloat16;
    PTQ_ASSIGN_OR_RETURN(wide_model,
                         DecoderModel::Create(plan_.inspection.config, *reader_, compute));
    wide_loader = std::make_unique<BlockLoader>(*wide_model, LoaderOptions(compute, memory_));
  }
  const bool host = compute.device.is_cpu();
  FisherObserver observer(wide_loader != nullptr ? *wide_loader : *loader_,
                          {.micro_batch = memory_.micro_batches.fisher,
                           .seed = MixSeed(spec.seed, -1),
                           .device_bytes = host ? kFisherHostBytes : memory_.fisher_outputs,
                           .scratch_folder = fisher_->folder()});
  WriteBehind writing;
  at::Tensor embedding;
  if (chains_begin) {
    embedding = observer_->inputs().full_precision.narrow(0, 0, windows).to(compute.dtype);
  } else {
    const DecoderModel& model = wide_model != nullptr ? *wide_model : *model_;
    PTQ_ASSIGN_OR_RETURN(embedding, model.Embed(calibration_windows_.narrow(0, 0, windows)));
  }
  absl::Status status = observer.Observe(
      embedding, cancel_, [this](double fraction) { events_.Phase("fisher", fraction); },
      [&](int64_t block, const at::Tensor& fisher) -> absl::Status {
        PTQ_RETURN_IF_ERROR(inputs_.Check());
        if (!at::isfinite(fisher).all().item<bool>()) {
          return absl::UnimplementedError("block " + std::to_string(block) +
                                          ": the gradients are not finite");
        }
        at::Tensor rounded = fisher.to(at::kBFloat16);
        if (rounded.is_cuda()) rounded = PageLocked(rounded);
        return writing.Start(
            [this, block, rounded = std::move(rounded)] { return fisher_->Write(block, rounded); });
      });
  if (const absl::Status written = writing.Wait(); status.ok()) status = written;
  const double seconds = stopwatch.Seconds();
  if (status.ok()) status = Identify();
  if (status.ok()) status = fisher_->Finish(seconds);
  if (absl::IsUnimplemented(status)) {
    warnings_.push_back("There is no Fisher metric (" + Message(status) +
                        "): blocks are tuned by the plain squared error.");
    events_.Log("warning", warnings_.back());
    fisher_.reset();
    fisher_tokens_ = 0;
    status = absl::OkStatus();
  }
  fisher_seconds_ = seconds;
  fisher_host_peak_bytes_ = HostPeakBytes();
  ReleaseFreeHeap();
  return status;
}

absl::Status Pipeline::ReadFisher(int64_t index, ObservedBlock& observed) {
  if (fisher_ == nullptr) return absl::OkStatus();
  absl::StatusOr<at::Tensor> fisher = fisher_->Read(index);
  if (!fisher.ok()) {
    warnings_.push_back(Message(fisher.status()) + ": computed again.");
    events_.Log("warning", warnings_.back());
    PTQ_RETURN_IF_ERROR(fisher_->StartOver());
    PTQ_RETURN_IF_ERROR(ObserveFisher(/*chains_begin=*/false));
    if (fisher_ == nullptr) return absl::OkStatus();
    fisher = fisher_->Read(index);
  }
  if (!fisher.ok()) return fisher.status();
  observed.fisher = plan_.compute.device.is_cpu() ? *std::move(fisher) : PageLocked(*fisher);
  observed.fisher_tokens = fisher_tokens_;
  return absl::OkStatus();
}

absl::Status Pipeline::Identify() {
  Stopwatch stopwatch;
  // Waited for here, where the wait can be told; the folder finds them there.
  PTQ_RETURN_IF_ERROR(
      inputs_.Wait([this](double fraction) { events_.Phase("load", fraction); }).status());
  load_seconds_ += stopwatch.Lap();
  PTQ_RETURN_IF_ERROR(writing_->Wait());
  export_seconds_ += stopwatch.Lap();
  return folder_.Identify();
}

absl::Status Pipeline::QuantizeBlocks() {
  if (IsAffineAskedFor()) {
    PTQ_RETURN_IF_ERROR(outer_writing_.Start([this]() -> absl::Status {
      PTQ_ASSIGN_OR_RETURN(outer_digests_, records_->WriteOuterShards(*reader_, cancel_));
      return absl::OkStatus();
    }));
  }
  // By an earlier run, or by this one before the device's memory ran out. Those of this one follow
  // all of them: nothing is written while blocks are replayed or dropped.
  auto finished = static_cast<int64_t>(folder_.finished_blocks().size());
  int64_t resumed = finished;
  for (int64_t index = 0; index < part_count(); ++index) {
    PTQ_RETURN_IF_ERROR(cancel_.Check());
    const bool head = index == model_->block_count();
    const std::string name = head ? "the head" : "block " + std::to_string(index);
    if (index < finished) {
      const absl::Status replayed = CatchTorchErrors(name, [&] { return ReplayBlock(index); });
      if (replayed.ok()) {
        parts_resumed_ = std::min(index + 1, resumed);
        continue;
      }
      if (IsDeviceMemoryExhausted(replayed)) {
        PTQ_RETURN_IF_ERROR(BeginAgain(index, replayed));
        index = -1;
        continue;
      }
      if (!absl::IsDataLoss(replayed) && !absl::IsNotFound(replayed)) return replayed;
      warnings_.push_back("The record of " + name + " was damaged (" + Message(replayed) +
                          "): redone from there on.");
      events_.Log("warning", warnings_.back());
      PTQ_RETURN_IF_ERROR(folder_.DropBlocksFrom(index));
      finished = index;
      resumed = std::min(resumed, index);
      if (observer_ == nullptr && !plan_.spec.calibration.empty()) {
        // All blocks seemed finished, so there were no chains: they begin at the first block.
        PTQ_RETURN_IF_ERROR(CatchTorchErrors("load", [&] { return LoadCalibration(); }));
        PTQ_RETURN_IF_ERROR(ObserveFisher(/*chains_begin=*/true));
        index = -1;
        continue;
      }
    }
    const absl::Status quantized =
        CatchTorchErrors(name, [&] { return head ? QuantizeHead() : QuantizeOneBlock(index); });
    ReleaseFreeHeap();
    if (quantized.ok()) continue;
    // The block's chains are of no use any more: as a resumed run does, all go through the finished
    // blocks again, each with the micro-batches that it was made with.
    PTQ_RETURN_IF_ERROR(BeginAgain(index, quantized));
    finished = static_cast<int64_t>(folder_.finished_blocks().size());
    index = -1;
  }
  return Identify();
}

absl::Status Pipeline::BeginAgain(int64_t index, const absl::Status& status) {
  PTQ_RETURN_IF_ERROR(TakeLessMemory(index, status));
  return CatchTorchErrors("load", [&] { return LoadCalibration(); });
}

int64_t Pipeline::BlockAfter(int64_t index) const {
  if (index + 1 < model_->block_count()) return index + 1;
  return evaluation_windows_.defined() ? 0 : BlockLoader::kNone;
}

absl::Status Pipeline::ReplayBlock(int64_t index) {
  // The records are read even where no chain needs them: evaluation will.
  PTQ_ASSIGN_OR_RETURN(const std::vector<QuantizedModule> records, records_->ReadBlock(index));
  if (observer_ == nullptr || index == model_->block_count()) return absl::OkStatus();
  events_.Phase("observe",
                static_cast<double>(index) / static_cast<double>(folder_.finished_blocks().size()));
  PTQ_ASSIGN_OR_RETURN(const auto block, loader_->Load(index, BlockAfter(index)));
  PTQ_ASSIGN_OR_RETURN(const std::vector<at::Tensor> weights, ReadWeights(index, *block));
  const Json& finished = folder_.finished_blocks()[static_cast<size_t>(index)];
  PTQ_ASSIGN_OR_RETURN(const MicroBatches made_with,
                       MicroBatchesFromJson(finished.value("micro_batches", Json())));
  observer_->set_micro_batch(made_with.forward);
  PTQ_ASSIGN_OR_RETURN(input_error_, observer_->Replay(*block, weights));
  return absl::OkStatus();
}

absl::Status Pipeline::QuantizeOneBlock(int64_t index) {
  Stopwatch stopwatch;
  BlockResult result;
  PTQ_ASSIGN_OR_RETURN(const auto block, loader_->Load(index, BlockAfter(index)));
  result.name = block->name();
  result.micro_batches = memory_.micro_batches;
  result.load_seconds = stopwatch.Lap();

  ObservedBlock observed;
  observed.block = block.get();
  if (observer_ != nullptr) {
    events_.Phase("observe", 0);
    observer_->set_micro_batch(memory_.micro_batches.forward);
    PTQ_ASSIGN_OR_RETURN(observed, observer_->Observe(*block));
    PTQ_RETURN_IF_ERROR(ReadFisher(index, observed));
    PTQ_RETURN_IF_ERROR(cancel_.Check());
    PTQ_RETURN_IF_ERROR(SynchronizeCuda());  // or the algorithm's time would be that of the passes
  }
  result.observe_seconds = stopwatch.Lap();
  // Or the longest part would be done in vain.
  PTQ_RETURN_IF_ERROR(inputs_.Check());
  PTQ_RETURN_IF_ERROR(writing_->Check());

  events_.Phase("quantize", 0);
  const std::vector<std::optional<QuantizationScheme>> schemes = SchemesOf(*block);
  PTQ_ASSIGN_OR_RETURN(QuantizedBlock quantized,
                       quantizer_->QuantizeBlock({.observed = observed,
                                                  .schemes = schemes,
                                                  .seed = MixSeed(plan_.spec.seed, index),
                                                  .cancel = cancel_,
                                                  .progress = [this](double fraction) {
                                                    events_.Phase("quantize", fraction);
                                                  }}));
  PTQ_RETURN_IF_ERROR(cancel_.Check());
  result.loss_first = quantized.loss_first;
  result.loss_best = quantized.loss_best;
  result.loss_curve = std::move(quantized.loss_curve);
  result.search_seconds = quantized.search_seconds;
  result.step_seconds = quantized.step_seconds;
  result.tuning_path = quantized.tuning_path;
  result.fisher_tokens = observed.fisher_tokens;
  if (input_error_ && input_error_->held_out > 0) result.input_error = input_error_;
  result.quantize_seconds = stopwatch.Lap();

  std::vector<at::Tensor> weights(block->linears().size());
  std::vector<QuantizedModule> modules;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (!schemes[i]) continue;
    if (i >= quantized.linears.size() || !quantized.linears[i]) {
      return absl::InternalError(block->linears()[i].module + ": the algorithm made no record");
    }
    modules.push_back({block->linears()[i].module, quantized.linears[i]->weight});
    if (observer_ != nullptr) weights[i] = EffectiveWeight(plan_, quantized.linears[i]->weight);
  }
  observed.statistics.clear();
  PTQ_ASSIGN_OR_RETURN(result.modules, MeasureModules(observed, quantized, weights));
  result.observe_seconds += stopwatch.Lap();
  result.observe_seconds += std::exchange(advance_seconds_, 0);

  PTQ_RETURN_IF_ERROR(WriteBlock(index, std::move(result), std::move(modules)));
  stopwatch.Lap();
  if (observer_ != nullptr && index + 1 < part_count()) {
    PTQ_ASSIGN_OR_RETURN(input_error_, observer_->Advance(*block, weights));
    advance_seconds_ = stopwatch.Lap();
  }
  return absl::OkStatus();
}

const DecoderModel* Pipeline::WithQuantizedEmbedding() const {
  return embedding_scheme_ != nullptr ? quantized_outside_.get() : nullptr;
}

const DecoderModel* Pipeline::WithQuantizedHead() const {
  const bool tied = plan_.inspection.config.tie_word_embeddings;
  return head_scheme_ != nullptr || (tied && embedding_scheme_ != nullptr)
             ? quantized_outside_.get()
             : nullptr;
}

absl::Status Pipeline::WriteEmbedding() {
  if (embedding_scheme_ == nullptr) return absl::OkStatus();
  PTQ_ASSIGN_OR_RETURN(QuantizedModule embedding,
                       QuantizeEmbedding(plan_, *embedding_scheme_, *reader_, cancel_));
  PTQ_ASSIGN_OR_RETURN(embedding_digest_,
                       records_->WriteBlock(kEmbeddingBlock, {embedding}, *reader_, cancel_));
  return absl::OkStatus();
}

absl::Status Pipeline::QuantizeHead() {
  Stopwatch stopwatch;
  const EffectiveScheme& planned = *head_scheme_;
  PTQ_ASSIGN_OR_RETURN(const LanguageModelHead head, model_->LoadHead());
  BlockResult result;
  result.name = planned.module;
  result.micro_batches = memory_.micro_batches;
  result.load_seconds = stopwatch.Lap();
  HeadQuantizer quantizer(plan_, planned, head,
                          observer_ != nullptr ? observer_->inputs().quantized : at::Tensor(),
                          cancel_);
  if (observer_ != nullptr) events_.Phase("observe", 0);
  PTQ_RETURN_IF_ERROR(quantizer.Observe(memory_.micro_batches.forward));
  PTQ_RETURN_IF_ERROR(SynchronizeCuda());
  result.observe_seconds = stopwatch.Lap() + std::exchange(advance_seconds_, 0);
  PTQ_RETURN_IF_ERROR(inputs_.Check());
  PTQ_RETURN_IF_ERROR(writing_->Check());

  events_.Phase("quantize", 0);
  PTQ_RETURN_IF_ERROR(
      quantizer.Quantize([this](double fraction) { events_.Phase("quantize", fraction); }));
  result.quantize_seconds = stopwatch.Lap();
  PTQ_RETURN_IF_ERROR(quantizer.Measure());
  result.observe_seconds += stopwatch.Lap();
  result.modules.push_back(quantizer.result());
  return WriteBlock(planned.block, std::move(result), {{planned.module, quantizer.record()}});
}

absl::Status Pipeline::WriteBlock(int64_t index, BlockResult result,
                                  std::vector<QuantizedModule> modules) {
  Stopwatch stopwatch;
  PTQ_ASSIGN_OR_RETURN(const int64_t slot, writing_->WaitForSlot());
  const double waited = stopwatch.Lap();
  staging_->Fill(slot, modules);
  const double copied = stopwatch.Lap();
  PTQ_LOG(Debug) << absl::StrFormat(
      "%s: loaded in %.3f s, observed in %.3f, quantized in %.3f, slot free after %.3f, copied in "
      "%.3f",
      result.name, result.load_seconds, result.observe_seconds, result.quantize_seconds, waited,
      copied);
  result.export_seconds = waited + copied;
  result.seconds = result.load_seconds + result.observe_seconds + result.quantize_seconds +
                   result.export_seconds;
  JobEvent event;
  event.type = JobEvent::Type::kBlockDone;
  event.block = index;
  event.block_name = result.name;
  event.seconds = result.seconds;
  event.loss_first = result.loss_first;
  event.loss_best = result.loss_best;
  event.host_peak_bytes = HostPeakBytes();
  event.device_peak_bytes = CudaPeakMemoryBytes();
  struct Written {
    BlockResult result;
    std::string sha256;
  };
  const auto written = std::make_shared<Written>();
  written->result = std::move(result);
  return writing_->Start(
      [this, index, written, modules = std::move(modules)]() -> absl::Status {
        const Stopwatch writing;
        PTQ_ASSIGN_OR_RETURN(written->sha256,
                             records_->WriteBlock(index, modules, *reader_, cancel_));
        written->result.write_seconds = writing.Seconds();
        return absl::OkStatus();
      },
      [this, index, written, event = std::move(event)]() mutable -> absl::Status {
        PTQ_RETURN_IF_ERROR(inputs_.Wait().status());
        PTQ_RETURN_IF_ERROR(folder_.FinishBlock(RecordPath(records_->FileName(index)),
                                                written->sha256,
                                                BlockResultToJson(written->result)));
        // Progress is in blocks.
        if (index < model_->block_count()) events_.Write(std::move(event));
        return absl::OkStatus();
      });
}

absl::StatusOr<std::vector<ModuleResult>> Pipeline::MeasureModules(
    const ObservedBlock& observed, const QuantizedBlock& quantized,
    const std::vector<at::Tensor>& weights) {
  const std::vector<Linear>& linears = observed.block->linears();
  const std::vector<std::optional<QuantizationScheme>> schemes = SchemesOf(*observed.block);
  std::vector<OutputError> errors(linears.size());
  if (observed.inputs != nullptr) {
    const bool rtn = plan_.spec.algorithm == Algorithm::kRtn;
    PTQ_ASSIGN_OR_RETURN(
        errors, MeasureOutputErrors(observed, [&](size_t i) {
          std::vector<at::Tensor> candidates;
          if (!schemes[i]) return candidates;
          candidates.push_back(weights[i]);
          if (rtn) return candidates;
          candidates.push_back(EffectiveWeight(
              plan_, QuantizeRtn(linears[i].weight, plan_.stored_dtype, *schemes[i])));
          return candidates;
        }));
  }
  std::vector<ModuleResult> modules;
  for (size_t i = 0; i < linears.size(); ++i) {
    if (!schemes[i]) continue;
    ModuleResult module;
    module.name = linears[i].module;
    module.scheme = *schemes[i];
    module.fallback_reason = quantized.linears[i]->fallback_reason;
    module.damping = quantized.linears[i]->damping;
    if (!observed.tokens.empty()) module.tokens = observed.tokens[i];
    if (errors[i].tokens > 0) {
      module.output_mse = errors[i].mse.front();
      module.relative_error =
          errors[i].mean_square > 0 ? errors[i].mse.front() / errors[i].mean_square : 0;
      module.rtn_output_mse = errors[i].mse.back();
    }
    modules.push_back(std::move(module));
  }
  return modules;
}

absl::StatusOr<Json> Pipeline::EvaluateResult() {
  events_.Phase("evaluate", 0);
  PTQ_ASSIGN_OR_RETURN(
      const EvaluationResult result,
      Evaluate({.loader = *loader_,
                .quantized_embedding = WithQuantizedEmbedding(),
                .quantized_head = WithQuantizedHead(),
                .windows = evaluation_windows_,
                .quantized_weights =
                    [this](int64_t index, const DecoderBlock& block) {
                      return ReadWeights(index, block);
                    },
                .cache = cache_,
                .cache_key = BaselineKey(folder_.identity(), evaluation_windows_),
                .cancel = cancel_,
                .progress = [this](double fraction) { events_.Phase("evaluate", fraction); }}));
  events_.Phase("evaluate", 1);
  return EvaluationToJson(result);
}

bool Pipeline::IsAffineAskedFor() const {
  const std::vector<std::string>& formats = plan_.spec.format;
  return std::find(formats.begin(), formats.end(), "affine") != formats.end();
}

absl::Status Pipeline::OpenRecords() {
  const std::vector<std::string>& formats = plan_.spec.format;
  const bool affine = IsAffineAskedFor();
  const std::string folder =
      affine ? FormatFolder(folder_.path(), formats, "affine") : folder_.record_folder();
  records_path_ = folder == folder_.path() ? "" : folder.substr(folder_.path().size() + 1);
  PTQ_RETURN_IF_ERROR(MakeDirectories(folder));
  PTQ_ASSIGN_OR_RETURN(records_, RecordFolder::Create(plan_.MakeExportPlan(), folder,
                                                      affine ? RecordFolder::Kind::kAffineShards
                                                             : RecordFolder::Kind::kRecords));
  return absl::OkStatus();
}

std::string Pipeline::RecordPath(const std::string& name) const {
  return records_path_.empty() ? name : JoinPath(records_path_, name);
}

absl::StatusOr<std::vector<FileDigest>> Pipeline::WriteFormats() {
  const JobCheckpoint checkpoint(*records_, *reader_);
  std::vector<std::string> present;
  FileDigests known;
  if (IsAffineAskedFor()) {
    PTQ_RETURN_IF_ERROR(records_->Finalize());
    present = {"affine"};
    for (const auto& [name, digest] : outer_digests_) known[RecordPath(name)] = digest;
    if (!embedding_digest_.empty()) {
      known[RecordPath(records_->FileName(kEmbeddingBlock))] = embedding_digest_;
    }
    for (size_t i = 0; i < folder_.shard_digests().size(); ++i) {
      known[RecordPath(records_->FileName(static_cast<int64_t>(i)))] = folder_.shard_digests()[i];
    }
  }
  PTQ_ASSIGN_OR_RETURN(
      FileDigests written,
      ExportFormats(checkpoint, plan_.spec.format, present, folder_.path(), cancel_,
                    [this](double done) { events_.Phase("export", done); }));
  known.merge(written);
  return DigestResultFiles(folder_.path(), known, cancel_);
}

std::vector<std::optional<QuantizationScheme>> Pipeline::SchemesOf(
    const DecoderBlock& block) const {
  std::vector<std::optional<QuantizationScheme>> schemes(block.linears().size());
  for (size_t i = 0; i < schemes.size(); ++i) {
    const auto found = std::find_if(
        plan_.schemes.begin(), plan_.schemes.end(),
        [&](const EffectiveScheme& s) { return s.module == block.linears()[i].module; });
    if (found != plan_.schemes.end()) schemes[i] = found->scheme;
  }
  return schemes;
}

absl::StatusOr<std::vector<at::Tensor>> Pipeline::ReadWeights(int64_t index,
                                                              const DecoderBlock& block) const {
  PTQ_ASSIGN_OR_RETURN(const std::vector<QuantizedModule> records, records_->ReadBlock(index));
  std::vector<at::Tensor> weights(block.linears().size());
  for (const QuantizedModule& record : records) {
    const auto linear = std::find_if(block.linears().begin(), block.linears().end(),
                                     [&](const Linear& l) { return l.module == record.module; });
    if (linear == block.linears().end()) {
      return absl::DataLossError("a record of block " + std::to_string(index) +
                                 " is of an unknown module: " + record.module);
    }
    weights[static_cast<size_t>(linear - block.linears().begin())] =
        EffectiveWeight(plan_, record.weight);
  }
  return weights;
}

}  // namespace ptq
