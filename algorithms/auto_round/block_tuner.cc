#include "algorithms/auto_round/block_tuner.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "algorithms/auto_round/autograd_pass.h"
#include "algorithms/auto_round/fused_pass.h"
#include "algorithms/auto_round/learned_scale_math.h"
#include "algorithms/auto_round/learned_scale_parameters.h"
#include "algorithms/auto_round/rounding_parameters.h"
#include "algorithms/auto_round/schedule.h"
#include "algorithms/cuda/device_kernels.h"
#include "algorithms/rtn/rtn.h"

namespace ptq {
namespace {

// Eager steps before the graph is captured: they start cuBLAS and fill the allocator's pools.
constexpr int64_t kEagerSteps = 2;
// The capture's replay comes with memory of its own.
constexpr int64_t kWarmUpSteps = kEagerSteps + 1;

// What the gradient of a block's output is scaled to (root mean square) before the backward pass,
// so that weight gradients are about 1e-3: far from where their squares underflow
// (learned_scale_math.h) and, in half precision, where they themselves do.
constexpr double kGradientRms = 1.0 / 16384;
constexpr double kHalfGradientRms = 1.0 / 16;

at::Tensor OnDevice(std::vector<float> values, at::Device device) {
  return at::from_blob(values.data(), {static_cast<int64_t>(values.size())}, at::kFloat)
      .clone()
      .to(device);
}

}  // namespace

// All steps of a CUDA tuning run on the stream for it.
struct BlockTuner::Graph {
  explicit Graph(TuningStream& on) : stream(on), own(on.stream()) {
    c10::impl::VirtualGuardImpl(own.device_type()).getStream(own.device()).synchronize();
  }
  ~Graph() {
    try {
      own.synchronize();
      if (handle != nullptr) CudaKernels().graph_destroy(handle);
    } catch (const c10::Error&) {  // of a device that failed: whoever uses it next will see it
    }
  }

  TuningStream& stream;
  c10::Stream own;
  void* handle = nullptr;
  bool refused = false;  // something in the block cannot be captured: all steps run eagerly
};

BlockTuner::BlockTuner(const BlockQuantizationRequest& request, at::ScalarType stored_dtype,
                       const AutoRoundOptions& options,
                       const std::vector<std::optional<QParams>>& starts, TuningStream* stream)
    : observed_(request.observed),
      schemes_(request.schemes),
      options_(options),
      device_(observed_.block->linears().front().weight.device()) {
  const c10::InferenceMode no_inference(false);
  const at::NoGradGuard no_grad;
  inputs_ = observed_.inputs->quantized.contiguous();
  const int64_t samples = inputs_.size(0);
  const int64_t iterations = options.iterations;
  batch_ = std::min(options.batch_size, samples);
  micro_batch_ = options.micro_batch > 0 ? std::min(options.micro_batch, batch_) : batch_;

  std::vector<int64_t> order = BatchOrder(samples, batch_, iterations, request.seed);
  const auto options_of = [&](at::ScalarType dtype) { return at::device(device_).dtype(dtype); };
  loss_inputs_ = {
      .targets = observed_.targets.contiguous(),
      .mask = observed_.inputs->token_mask.to(device_, at::kFloat).contiguous(),
      .order = at::from_blob(order.data(), {iterations, batch_}, at::kLong).clone().to(device_),
      .step = at::zeros({1}, options_of(at::kLong)),
      .loss_curve = at::zeros({iterations}, options_of(at::kFloat)),
      .staged_targets = {},
      .slots = {}};
  if (inputs_.device() != device_) {
    ring_ = std::make_unique<BatchRing>(std::vector{inputs_, loss_inputs_.targets},
                                        std::move(order), batch_, device_);
    inputs_ = ring_->samples(0);
    loss_inputs_.staged_targets = ring_->samples(1);
    loss_inputs_.slots = ring_->slots();
  }
  if (device_.is_cuda() && IsShortOfMemory()) CudaKernels().release_cached_memory();
  if (options.method == AutoRoundMethod::kLearnedScale && observed_.fisher.defined()) {
    loss_ = std::make_unique<FisherLoss>(loss_inputs_, observed_.fisher,
                                         FisherWeight(observed_.fisher_tokens, inputs_.size(2)));
  } else {
    auto squared = std::make_unique<SquaredErrorLoss>(loss_inputs_);
    if (options.method == AutoRoundMethod::kPaper) {
      best_ = squared.get();
    }
    loss_ = std::move(squared);
  }
  MakeParameters(stored_dtype, starts);
  MakeSharedLinears();
  MakePass();
  FakeQuantizeAll();
  std::optional<c10::StreamGuard> on_own_stream;
  if (device_.is_cuda()) {
    graph_ = std::make_unique<Graph>(*stream);  // after all that runs on the caller's stream
    // What that left is of no use to another stream.
    if (IsShortOfMemory()) CudaKernels().release_cached_memory();
    on_own_stream.emplace(graph_->own);
  }
  ChooseGradientScale();
}

BlockTuner::~BlockTuner() = default;

void BlockTuner::MakeParameters(at::ScalarType stored_dtype,
                                const std::vector<std::optional<QParams>>& starts) {
  const std::vector<Linear>& linears = observed_.block->linears();
  const int64_t iterations = options_.iterations;
  const auto table = [&](const std::vector<float>& values) {
    return rate_tables_.emplace_back(OnDevice(values, device_)).const_data_ptr<float>();
  };
  parameters_.resize(linears.size());
  fixed_weights_.resize(linears.size());
  rates_.resize(linears.size());
  for (size_t i = 0; i < linears.size(); ++i) {
    const at::Tensor& weight = linears[i].weight;
    fixed_weights_[i] = weight;
    if (!schemes_[i].has_value()) {
      continue;
    }
    const QuantizationScheme& scheme = *schemes_[i];
    StepRates& rates = rates_[i];
    rates.step = loss_inputs_.step.const_data_ptr<int64_t>();
    if (options_.method == AutoRoundMethod::kPaper) {
      parameters_[i] = std::make_unique<RoundingParameters>(weight, stored_dtype, scheme);
      const double rate = options_.learning_rate > 0 ? options_.learning_rate
                                                     : DefaultLearningRate(iterations, scheme.bits);
      const double range_rate =
          options_.range_learning_rate > 0 ? options_.range_learning_rate : rate;
      rates.value = table(LinearDecay(rate, iterations));
      rates.range = table(LinearDecay(range_rate, iterations));
      rates.improved = best_->improved().const_data_ptr<int32_t>();
      continue;
    }
    if (HasFewTokens(observed_, i)) {
      fixed_weights_[i] =
          Dequantize(QuantizeToScales(weight, *starts[i], stored_dtype, scheme), stored_dtype)
              .to(weight.options());
      continue;
    }
    parameters_[i] =
        std::make_unique<LearnedScaleParameters>(weight, stored_dtype, scheme, *starts[i]);
    const double peak = options_.learning_rate > 0
                            ? options_.learning_rate * static_cast<double>(iterations)
                            : LearnedScalePeak(iterations);
    const double factor_peak = options_.range_learning_rate > 0
                                   ? options_.range_learning_rate * static_cast<double>(iterations)
                                   : kFactorRate * peak;
    rates.value = table(CosineDecay(peak, iterations));
    rates.range = table(CosineDecay(factor_peak, iterations));
    rates.first_correction = table(MomentCorrections(rounding::kFirstDecay, iterations));
    rates.second_correction = table(MomentCorrections(rounding::kSecondDecay, iterations));
  }
}

// Which linears see the same input is found out by looking: one sample is run through the block,
// and further ones as long as there are experts that none of them reached.
void BlockTuner::MakeSharedLinears() {
  const std::vector<Linear>& linears = observed_.block->linears();
  is_used_.assign(linears.size(), false);
  at::Tensor last_input;
  const auto look = [&](size_t index, const at::Tensor& input) {
    if (parameters_[index] != nullptr && !is_used_[index]) {
      if (shared_.empty() || !last_input.is_same(input)) {
        shared_.emplace_back();
        last_input = input;
      }
      is_used_[index] = true;
      shared_.back().members.push_back(index);
    }
    return ApplyLinear(linears[index], fixed_weights_[index], input);
  };
  const auto is_missing = [this] {
    for (size_t i = 0; i < parameters_.size(); ++i) {
      if (parameters_[i] != nullptr && !is_used_[i]) return true;
    }
    return false;
  };
  const at::Tensor& samples = observed_.inputs->quantized;
  for (int64_t sample = 0; sample < samples.size(0) && is_missing(); ++sample) {
    observed_.block->Forward(samples.narrow(0, sample, 1).to(device_), *observed_.rotary, look);
  }
  for (SharedLinear& shared : shared_) {
    shared.in_features = linears[shared.members.front()].weight.size(1);
    bool any_bias = false;
    std::vector<at::Tensor> biases;
    for (const size_t index : shared.members) {
      const Linear& linear = linears[index];
      shared.rows.push_back(linear.weight.size(0));
      any_bias = any_bias || linear.bias.defined();
      biases.push_back(linear.bias.defined()
                           ? linear.bias
                           : at::zeros({shared.rows.back()}, linear.weight.options()));
    }
    if (any_bias) {
      shared.bias = at::cat(biases);
    }
  }
}

// Whether e4m3 holds all codes q - z, and an FP8 product takes a scale for each group.
bool BlockTuner::HasFp8Codes(const SharedLinear& shared) const {
  const auto takes = [&](int64_t samples) {
    return IsFp8Product(samples * inputs_.size(1), shared.out_features(), shared.in_features);
  };
  return takes(micro_batch_) && takes(batch_ % micro_batch_) &&
         std::all_of(shared.members.begin(), shared.members.end(), [this](size_t member) {
           return schemes_[member]->bits <= 4 && schemes_[member]->group_size == kFp8Block;
         });
}

void BlockTuner::MakePass() {
  const bool fp8 = options_.precision == TuningPrecision::kFp8 &&
                   inputs_.scalar_type() == at::kBFloat16 && HasFp8Products();
  pass_ = FusedPass::Create(*observed_.block, *observed_.rotary, shared_, fp8,
                            DeviceAttention::kWorkspaceBytes * micro_batch_ / batch_);
  for (SharedLinear& shared : shared_) {
    const int64_t rows = shared.out_features();
    if (pass_ != nullptr && fp8 && HasFp8Codes(shared)) {
      shared.codes = {
          at::empty({rows, shared.in_features}, inputs_.options().dtype(at::kFloat8_e4m3fn)),
          at::empty({shared.in_features / kFp8Block, rows}, inputs_.options().dtype(at::kFloat))
              .t()};
    } else {
      shared.weight =
          at::empty({rows, shared.in_features},
                    observed_.block->linears()[shared.members.front()].weight.options());
    }
  }
  if (pass_ == nullptr) {
    pass_ = std::make_unique<AutogradPass>(*observed_.block, *observed_.rotary, fixed_weights_,
                                           shared_);
  }
}

// Paper: the loss times 1000 serves where the exponent has 8 bits. Else the first batch decides.
void BlockTuner::ChooseGradientScale() {
  const bool half = inputs_.scalar_type() == at::kHalf;
  if (options_.method == AutoRoundMethod::kPaper && !half) {
    const int64_t values = batch_ * inputs_.size(1) * inputs_.size(2);
    loss_->gradient_scale = static_cast<float>(2000.0 / static_cast<double>(values));
    return;
  }
  if (ring_ != nullptr) ring_->Begin(0);
  double mean_square = 0;
  for (int64_t first = 0; first < batch_; first += micro_batch_) {
    const int64_t count = LengthOfMicroBatch(first);
    const at::Tensor gradient = loss_->Gradient(pass_->Forward(MicroBatch(first, count)), first);
    mean_square += gradient.to(at::kFloat).square().mean().item<double>() *
                   (static_cast<double>(count) / static_cast<double>(batch_));
  }
  const double rms = std::sqrt(mean_square);
  loss_->Reset();
  // A power of two, so that the scale changes no bit but the exponent's.
  loss_->gradient_scale =
      std::isfinite(rms) && rms > 0
          ? static_cast<float>(
                std::exp2(std::round(std::log2((half ? kHalfGradientRms : kGradientRms) / rms))))
          : 1.0F;
}

void BlockTuner::FakeQuantizeAll() {
  for (const SharedLinear& shared : shared_) {
    for (size_t position = 0; position < shared.members.size(); ++position) {
      parameters_[shared.members[position]]->FakeQuantize(shared.OutputOf(position));
    }
  }
}

at::Tensor BlockTuner::MicroBatch(int64_t first, int64_t count) const {
  const int64_t bytes = inputs_.stride(0) * inputs_.element_size();
  const at::Tensor& slots = loss_inputs_.step_slots();
  if (!inputs_.is_cuda() || bytes % 16 != 0) {
    return inputs_.index_select(
        0, slots.index_select(0, loss_inputs_.step).view({-1}).narrow(0, first, count));
  }
  at::Tensor samples = at::empty({count, inputs_.size(1), inputs_.size(2)}, inputs_.options());
  CheckCuda(CudaKernels().gather({.inputs = inputs_.const_data_ptr(),
                                  .order = slots.const_data_ptr<int64_t>(),
                                  .step = loss_inputs_.step.const_data_ptr<int64_t>(),
                                  .output = samples.mutable_data_ptr(),
                                  .batch = batch_,
                                  .first = first,
                                  .count = count,
                                  .bytes = bytes},
                                 CudaKernels().current_stream()));
  return samples;
}

void BlockTuner::RunStep() {
  const BlockPass::GradientSink step = [this](size_t index, const at::Tensor& gradient) {
    const SharedLinear& shared = shared_[index];
    for (size_t position = 0; position < shared.members.size(); ++position) {
      const size_t member = shared.members[position];
      parameters_[member]->Step(shared.RowsOf(position, gradient), rates_[member],
                                shared.OutputOf(position));
    }
  };
  for (int64_t first = 0; first < batch_; first += micro_batch_) {
    const int64_t count = LengthOfMicroBatch(first);
    const at::Tensor gradient = loss_->Gradient(pass_->Forward(MicroBatch(first, count)), first);
    pass_->Backward(gradient, first + count == batch_ ? step : nullptr);
  }
  loss_inputs_.step.add_(1);
}

// Capturing runs nothing: a block that cannot be captured loses no step. The device works on the
// eager steps meanwhile, unless memory is short.
void BlockTuner::CaptureStep() {
  const CudaApi& cuda = CudaKernels();
  if (IsShortOfMemory()) {
    // The graph's memory is its own: what the eager steps left would lie idle beside it.
    graph_->own.synchronize();
    cuda.release_cached_memory();
  }
  graph_->handle = cuda.graph_create();
  bool capturing = false;
  try {
    cuda.graph_capture_begin(graph_->handle, graph_->stream.graph_memory());
    capturing = true;
    RunStep();
    capturing = false;
    cuda.graph_capture_end(graph_->handle);
  } catch (const c10::Error& error) {
    if (capturing) {
      try {
        cuda.graph_capture_end(graph_->handle);  // else the stream would stay in capture mode
      } catch (const c10::Error&) {              // the broken capture's own error
      }
    }
    cuda.graph_destroy(graph_->handle);
    graph_->handle = nullptr;
    if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr) throw;
    graph_->refused = true;
  }
}

void BlockTuner::Step() {
  const c10::InferenceMode no_inference(false);
  const at::NoGradGuard no_grad;
  if (graph_ == nullptr) {
    RunStep();
  } else {
    const c10::StreamGuard on_own_stream(graph_->own);
    if (ring_ != nullptr) ring_->Begin(steps_);
    if (steps_ >= kEagerSteps && graph_->handle == nullptr && !graph_->refused) {
      CaptureStep();
    }
    if (graph_->handle != nullptr) {
      CudaKernels().graph_replay(graph_->handle);
    } else {
      RunStep();
    }
    if (ring_ != nullptr) ring_->End(steps_);
  }
  ++steps_;
  if (steps_ == kWarmUpSteps) Mark(clock_.device_begin, clock_.host_begin);
  if (steps_ == options_.iterations) Mark(clock_.device_end, clock_.host_end);
}

void BlockTuner::Mark(std::optional<c10::Event>& device,
                      std::chrono::steady_clock::time_point& host) const {
  host = std::chrono::steady_clock::now();
  if (graph_ == nullptr) return;
  device.emplace(graph_->own.device_type(), c10::EventFlag::BACKEND_DEFAULT);  // with a time
  device->record(graph_->own);
}

std::optional<double> BlockTuner::StepSeconds() const {
  if (steps_ < options_.iterations || steps_ <= kWarmUpSteps) return std::nullopt;
  double seconds = std::chrono::duration<double>(clock_.host_end - clock_.host_begin).count();
  if (graph_ != nullptr) {
    clock_.device_end->synchronize();
    seconds = clock_.device_begin->elapsedTime(*clock_.device_end) / 1000;
  }
  return seconds / static_cast<double>(steps_ - kWarmUpSteps);
}

std::string BlockTuner::Path() const {
  const bool eager = graph_ != nullptr && graph_->refused;
  return pass_->Path(micro_batch_ * inputs_.size(1)) + (eager ? ", no graph" : "");
}

void BlockTuner::WaitForEarlierSteps() {
  if (graph_ == nullptr) return;
  c10::Event reached(graph_->own.device_type());
  reached.record(graph_->own);
  if (earlier_.has_value()) earlier_->synchronize();
  earlier_ = std::move(reached);
}

std::vector<float> BlockTuner::LossCurve() const {
  const at::NoGradGuard no_grad;
  if (graph_ != nullptr) {
    graph_->own.synchronize();
  }
  const at::Tensor curve = loss_inputs_.loss_curve.narrow(0, 0, steps_).cpu();
  return {curve.const_data_ptr<float>(), curve.const_data_ptr<float>() + steps_};
}

int64_t BlockTuner::KeptStep() const {
  if (graph_ != nullptr) {
    graph_->own.synchronize();
  }
  if (best_ != nullptr) {
    return best_->best_step().item<int64_t>();
  }
  return std::isfinite(loss_inputs_.loss_curve[steps_ - 1].item<float>()) ? steps_ - 1 : -1;
}

std::vector<std::optional<AffineQuantizedTensor>> BlockTuner::Records() {
  // Records are made in wide pieces, the place of which the steps' memory takes.
  TuningStream* stream = graph_ != nullptr ? &graph_->stream : nullptr;
  graph_.reset();
  pass_.reset();
  loss_.reset();
  best_ = nullptr;
  shared_.clear();
  inputs_ = loss_inputs_.staged_targets = at::Tensor();
  if (stream != nullptr && IsShortOfMemory()) stream->ReleaseMemory();
  ring_.reset();
  std::vector<std::optional<AffineQuantizedTensor>> records(parameters_.size());
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (is_used_[i]) {
      records[i] = parameters_[i]->Record();
    }
  }
  return records;
}

}  // namespace ptq
