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
  explicit Graph(const TuningStream& stream) : memory(stream.graph_memory()), own(stream.stream()) {
    c10::impl::VirtualGuardImpl(own.device_type()).getStream(own.device()).synchronize();
  }
  ~Graph() {
    try {
      own.synchronize();
      if (handle != nullptr) CudaKernels().graph_destroy(handle);
    } catch (const c10::Error&) {  // of a device that failed: whoever uses it next will see it
    }
  }

  void* memory;
  c10::Stream own;
  void* handle = nullptr;
  bool refused = false;  // something in the block cannot be captured: all steps run eagerly
};

BlockTuner::BlockTuner(const BlockQuantizationRequest& request, at::ScalarType stored_dtype,
                       const AutoRoundOptions& options,
                       const std::vector<std::optional<QParams>>& starts,
                       const TuningStream* stream)
    : observed_(request.observed), schemes_(request.schemes), options_(options) {
  const c10::InferenceMode no_inference(false);
  const at::NoGradGuard no_grad;
  inputs_ = observed_.inputs->quantized.contiguous();
  const at::Device device = inputs_.device();
  const int64_t samples = inputs_.size(0);
  const int64_t iterations = options.iterations;
  batch_ = std::min(options.batch_size, samples);

  std::vector<int64_t> order = BatchOrder(samples, batch_, iterations, request.seed);
  const auto options_of = [&](at::ScalarType dtype) { return at::device(device).dtype(dtype); };
  loss_inputs_ = {
      .targets = observed_.targets.contiguous(),
      .mask = observed_.inputs->token_mask.to(at::kFloat).contiguous(),
      .order = at::from_blob(order.data(), {iterations, batch_}, at::kLong).clone().to(device),
      .step = at::zeros({1}, options_of(at::kLong)),
      .loss_curve = at::zeros({iterations}, options_of(at::kFloat))};
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
  ChooseGradientScale();
  if (device.is_cuda()) {
    graph_ = std::make_unique<Graph>(*stream);  // after all that runs on the caller's stream
  }
}

BlockTuner::~BlockTuner() = default;

void BlockTuner::MakeParameters(at::ScalarType stored_dtype,
                                const std::vector<std::optional<QParams>>& starts) {
  const std::vector<Linear>& linears = observed_.block->linears();
  const int64_t iterations = options_.iterations;
  const at::Device device = inputs_.device();
  const auto table = [&](const std::vector<float>& values) {
    return rate_tables_.emplace_back(OnDevice(values, device)).const_data_ptr<float>();
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

// Which linears see the same input is found out by looking: one sample is run through the block.
void BlockTuner::MakeSharedLinears() {
  const std::vector<Linear>& linears = observed_.block->linears();
  is_used_.assign(linears.size(), false);
  at::Tensor last_input;
  observed_.block->Forward(inputs_.narrow(0, 0, 1), *observed_.rotary,
                           [&](size_t index, const at::Tensor& input) {
                             if (parameters_[index] != nullptr && !is_used_[index]) {
                               if (shared_.empty() || !last_input.is_same(input)) {
                                 shared_.emplace_back();
                                 last_input = input;
                               }
                               is_used_[index] = true;
                               shared_.back().members.push_back(index);
                             }
                             return ApplyLinear(linears[index], fixed_weights_[index], input);
                           });
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
  return IsFp8Product(batch_ * inputs_.size(1), shared.out_features(), shared.in_features) &&
         std::all_of(shared.members.begin(), shared.members.end(), [this](size_t member) {
           return schemes_[member]->bits <= 4 && schemes_[member]->group_size == kFp8Block;
         });
}

void BlockTuner::MakePass() {
  const bool fp8 = options_.precision == TuningPrecision::kFp8 &&
                   inputs_.scalar_type() == at::kBFloat16 && HasFp8Products();
  pass_ = FusedPass::Create(*observed_.block, *observed_.rotary, shared_, fp8);
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
  const at::Tensor output = pass_->Forward(NextBatch());
  const double rms =
      std::sqrt(loss_->Gradient(output).to(at::kFloat).square().mean().item<double>());
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

at::Tensor BlockTuner::NextBatch() const {
  const int64_t bytes = inputs_.stride(0) * inputs_.element_size();
  if (!inputs_.is_cuda() || bytes % 16 != 0) {
    return inputs_.index_select(0,
                                loss_inputs_.order.index_select(0, loss_inputs_.step).view({-1}));
  }
  at::Tensor batch = at::empty({batch_, inputs_.size(1), inputs_.size(2)}, inputs_.options());
  CheckCuda(CudaKernels().gather({.inputs = inputs_.const_data_ptr(),
                                  .order = loss_inputs_.order.const_data_ptr<int64_t>(),
                                  .step = loss_inputs_.step.const_data_ptr<int64_t>(),
                                  .output = batch.mutable_data_ptr(),
                                  .batch = batch_,
                                  .bytes = bytes},
                                 CudaKernels().current_stream()));
  return batch;
}

void BlockTuner::RunStep() {
  const at::Tensor output = pass_->Forward(NextBatch());
  pass_->Backward(loss_->Gradient(output), [this](size_t index, const at::Tensor& gradient) {
    const SharedLinear& shared = shared_[index];
    for (size_t position = 0; position < shared.members.size(); ++position) {
      const size_t member = shared.members[position];
      parameters_[member]->Step(shared.RowsOf(position, gradient), rates_[member],
                                shared.OutputOf(position));
    }
  });
  loss_inputs_.step.add_(1);
}

// Capturing runs nothing: a block that cannot be captured loses no step. The device works on the
// eager steps meanwhile.
void BlockTuner::CaptureStep() {
  const CudaApi& cuda = CudaKernels();
  graph_->handle = cuda.graph_create();
  bool capturing = false;
  try {
    cuda.graph_capture_begin(graph_->handle, graph_->memory);
    capturing = true;
    RunStep();
    capturing = false;
    cuda.graph_capture_end(graph_->handle);
  } catch (const c10::Error&) {
    if (capturing) {
      try {
        cuda.graph_capture_end(graph_->handle);  // else the stream would stay in capture mode
      } catch (const c10::Error&) {              // the broken capture's own error
      }
    }
    cuda.graph_destroy(graph_->handle);
    graph_->handle = nullptr;
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
    if (steps_ >= kEagerSteps && graph_->handle == nullptr && !graph_->refused) {
      CaptureStep();
    }
    if (graph_->handle != nullptr) {
      CudaKernels().graph_replay(graph_->handle);
    } else {
      RunStep();
    }
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
  return pass_->Path(batch_ * inputs_.size(1)) + (eager ? ", no graph" : "");
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

std::vector<std::optional<AffineQuantizedTensor>> BlockTuner::Records() const {
  std::vector<std::optional<AffineQuantizedTensor>> records(parameters_.size());
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (is_used_[i]) {
      records[i] = parameters_[i]->Record();
    }
  }
  return records;
}

}  // namespace ptq
