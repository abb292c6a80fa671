#include "algorithms/auto_round/block_tuner.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "algorithms/auto_round/device_kernels.h"
#include "algorithms/auto_round/loss_loops.h"
#include "algorithms/auto_round/schedule.h"

namespace ptq {
namespace {

// Eager steps before the graph is captured: they start cuBLAS and fill the allocator's pools.
constexpr int64_t kEagerSteps = 2;

HiddenDtype HiddenDtypeOf(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return HiddenDtype::kFloat32;
    case at::kBFloat16:
      return HiddenDtype::kBFloat16;
    case at::kHalf:
      return HiddenDtype::kHalf;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(
          false, "Auto-Round computes in float32, bfloat16 and float16, not ", dtype);
  }
}

at::Tensor OnDevice(std::vector<float> values, at::Device device) {
  return at::from_blob(values.data(), {static_cast<int64_t>(values.size())}, at::kFloat)
      .clone()
      .to(device);
}

}  // namespace

// One leaf of autograd holds the fake-quantized weights of all members, row below row.
struct BlockTuner::SharedInput {
  std::vector<size_t> members;      // linear indices
  std::vector<int64_t> rows;        // out_features of each
  at::Tensor weight;                // [sum of rows, K], requires grad
  std::vector<at::Tensor> slices;   // its rows of each member, without autograd
  at::Tensor bias;                  // [sum of rows], or undefined
  at::Tensor input;                 // of the forward pass in progress
  std::vector<at::Tensor> outputs;  // likewise, by member

  at::Tensor Output(size_t position, const at::Tensor& seen) {
    if (!input.is_same(seen)) {
      input = seen;
      const at::Tensor product =
          at::linear(seen, weight, bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt);
      outputs = members.size() == 1 ? std::vector<at::Tensor>{product}
                                    : product.split_with_sizes(rows, -1);
    }
    return outputs[position];
  }
};

// Everything of a CUDA tuning runs on a stream of its own: the default one cannot be captured.
struct BlockTuner::Graph {
  explicit Graph(at::Device device)
      : implementation(device.type()),
        caller(implementation.getStream(device)),
        own(implementation.getStreamFromGlobalPool(device)) {
    caller.synchronize();
  }
  ~Graph() {
    own.synchronize();
    if (handle != nullptr) {
      CudaKernels().graph_destroy(handle);
      // A graph's memory belongs to it alone; without this each block would add its own.
      CudaKernels().release_cached_memory();
    }
  }

  c10::impl::VirtualGuardImpl implementation;
  c10::Stream caller;
  c10::Stream own;
  void* handle = nullptr;
  bool refused = false;  // something in the block cannot be captured: all steps run eagerly
};

BlockTuner::BlockTuner(const BlockQuantizationRequest& request, at::ScalarType stored_dtype,
                       const AutoRoundOptions& options)
    : observed_(request.observed), schemes_(request.schemes), options_(options) {
  const c10::InferenceMode no_inference(false);
  const at::NoGradGuard no_grad;
  inputs_ = observed_.inputs->quantized.contiguous();
  targets_ = observed_.targets.contiguous();
  mask_ = observed_.inputs->token_mask.to(at::kFloat).contiguous();
  const at::Device device = inputs_.device();
  const int64_t samples = inputs_.size(0);
  const int64_t iterations = options.iterations;
  batch_ = std::min(options.batch_size, samples);

  std::vector<int64_t> order = BatchOrder(samples, batch_, iterations, request.seed);
  order_ = at::from_blob(order.data(), {iterations, batch_}, at::kLong).clone().to(device);
  const auto options_of = [&](at::ScalarType dtype) { return at::device(device).dtype(dtype); };
  step_ = at::zeros({1}, options_of(at::kLong));
  loss_curve_ = at::zeros({iterations}, options_of(at::kFloat));
  best_loss_ = at::full({1}, std::numeric_limits<float>::infinity(), options_of(at::kFloat));
  best_step_ = at::full({1}, -1, options_of(at::kLong));
  improved_ = at::zeros({1}, options_of(at::kInt));
  token_sums_ = at::zeros({batch_, inputs_.size(1)}, options_of(at::kFloat));

  state_.targets = targets_.const_data_ptr();
  state_.mask = mask_.const_data_ptr<float>();
  state_.order = order_.const_data_ptr<int64_t>();
  state_.token_sums = token_sums_.mutable_data_ptr<float>();
  state_.step = step_.mutable_data_ptr<int64_t>();
  state_.loss_curve = loss_curve_.mutable_data_ptr<float>();
  state_.best_loss = best_loss_.mutable_data_ptr<float>();
  state_.best_step = best_step_.mutable_data_ptr<int64_t>();
  state_.improved = improved_.mutable_data_ptr<int32_t>();
  state_.batch = batch_;
  state_.length = inputs_.size(1);
  state_.width = inputs_.size(2);
  state_.dtype = HiddenDtypeOf(inputs_.scalar_type());

  const std::vector<Linear>& linears = observed_.block->linears();
  parameters_.resize(linears.size());
  rates_.resize(linears.size());
  for (size_t i = 0; i < linears.size(); ++i) {
    if (!schemes_[i].has_value()) {
      continue;
    }
    parameters_[i] =
        std::make_unique<RoundingParameters>(linears[i].weight, stored_dtype, *schemes_[i]);
    const double value_rate = options.learning_rate > 0
                                  ? options.learning_rate
                                  : DefaultLearningRate(iterations, schemes_[i]->bits);
    const double range_rate =
        options.range_learning_rate > 0 ? options.range_learning_rate : value_rate;
    const at::Tensor& value_table =
        rate_tables_.emplace_back(OnDevice(LinearDecay(value_rate, iterations), device));
    rates_[i].value = value_table.const_data_ptr<float>();
    const at::Tensor& range_table =
        rate_tables_.emplace_back(OnDevice(LinearDecay(range_rate, iterations), device));
    rates_[i].range = range_table.const_data_ptr<float>();
    rates_[i].step = state_.step;
    rates_[i].improved = state_.improved;
  }
  MakeSharedInputs();
  if (device.is_cuda()) {
    graph_ = std::make_unique<Graph>(device);
  }
  state_.gradient_scale = ChooseGradientScale();
}

BlockTuner::~BlockTuner() = default;

// Which linears see the same input is found out by looking: one sample is run through the block.
void BlockTuner::MakeSharedInputs() {
  const std::vector<Linear>& linears = observed_.block->linears();
  shared_of_.assign(linears.size(), -1);
  position_of_.assign(linears.size(), 0);
  at::Tensor last_input;
  observed_.block->Forward(
      inputs_.narrow(0, 0, 1), *observed_.rotary, [&](size_t index, const at::Tensor& input) {
        if (schemes_[index].has_value() && shared_of_[index] < 0) {
          if (shared_.empty() || !last_input.is_same(input)) {
            shared_.emplace_back();
            last_input = input;
          }
          shared_of_[index] = static_cast<int64_t>(shared_.size()) - 1;
          position_of_[index] = static_cast<int64_t>(shared_.back().members.size());
          shared_.back().members.push_back(index);
        }
        return ApplyLinear(linears[index], linears[index].weight, input);
      });
  for (SharedInput& shared : shared_) {
    const Linear& first = linears[shared.members.front()];
    bool any_bias = false;
    int64_t rows = 0;
    for (const size_t index : shared.members) {
      shared.rows.push_back(linears[index].weight.size(0));
      rows += shared.rows.back();
      any_bias = any_bias || linears[index].bias.defined();
    }
    shared.weight = at::empty({rows, first.weight.size(1)}, first.weight.options());
    std::vector<at::Tensor> biases;
    int64_t row = 0;
    for (size_t position = 0; position < shared.members.size(); ++position) {
      const Linear& linear = linears[shared.members[position]];
      shared.slices.push_back(shared.weight.narrow(0, row, shared.rows[position]));
      row += shared.rows[position];
      biases.push_back(linear.bias.defined()
                           ? linear.bias
                           : at::zeros({shared.rows[position]}, linear.weight.options()));
    }
    if (any_bias) {
      shared.bias = at::cat(biases);
    }
    shared.weight.set_requires_grad(true);
  }
}

at::Tensor BlockTuner::Forward(const at::Tensor& hidden) {
  const std::vector<Linear>& linears = observed_.block->linears();
  at::Tensor output = observed_.block->Forward(
      hidden, *observed_.rotary, [&](size_t index, const at::Tensor& input) {
        if (shared_of_[index] < 0) {
          return ApplyLinear(linears[index], linears[index].weight, input);
        }
        return shared_[static_cast<size_t>(shared_of_[index])].Output(
            static_cast<size_t>(position_of_[index]), input);
      });
  for (SharedInput& shared : shared_) {  // frees what autograd does not need
    shared.input = at::Tensor();
    shared.outputs.clear();
  }
  return output.contiguous();
}

// Only the gradient's signs are used, so its scale is free. The paper's loss · 1000 serves where
// the exponent has 8 bits. In float16 it would underflow: there the gradient of the output is
// brought to 1/16 on average (root mean square), as measured on the first batch with rtn's weights.
float BlockTuner::ChooseGradientScale() {
  if (state_.dtype != HiddenDtype::kHalf) {
    return static_cast<float>(2000.0 / static_cast<double>(state_.tokens() * state_.width));
  }
  for (SharedInput& shared : shared_) {
    for (size_t position = 0; position < shared.members.size(); ++position) {
      parameters_[shared.members[position]]->FakeQuantize(shared.slices[position]);
    }
  }
  const at::Tensor rows = order_.select(0, 0);
  const at::Tensor difference = Forward(inputs_.index_select(0, rows)).to(at::kFloat) -
                                targets_.index_select(0, rows).to(at::kFloat);
  const double rms = std::sqrt(
      (difference * mask_.index_select(0, rows).unsqueeze(-1)).square().mean().item<double>());
  return std::isfinite(rms) && rms > 0 ? static_cast<float>(0.0625 / rms) : 1.0F;
}

void BlockTuner::RunStep() {
  const bool cuda = inputs_.is_cuda();
  for (SharedInput& shared : shared_) {
    for (size_t position = 0; position < shared.members.size(); ++position) {
      parameters_[shared.members[position]]->FakeQuantize(shared.slices[position]);
    }
  }
  const at::Tensor rows = order_.index_select(0, step_).view({-1});
  const at::Tensor hidden = inputs_.index_select(0, rows);
  at::Tensor output;
  {
    const at::AutoGradMode with_grad(true);
    output = Forward(hidden);
  }
  const at::Tensor output_gradient =
      at::empty_like(output, output.options(), at::MemoryFormat::Contiguous);
  state_.output = output.const_data_ptr();
  state_.gradient = output_gradient.mutable_data_ptr();
  if (cuda) {
    CheckCuda(CudaKernels().tuning_loss(state_, CudaKernels().current_stream()));
  } else {
    at::parallel_for(0, state_.tokens(), 64,
                     [this](int64_t begin, int64_t end) { LossOfTokens(state_, begin, end); });
    FinishLoss(state_);
  }
  std::vector<at::Tensor> weights;
  for (const SharedInput& shared : shared_) {
    weights.push_back(shared.weight);
  }
  const std::vector<at::Tensor> gradients = torch::autograd::grad(
      {output}, weights, {output_gradient}, /*retain_graph=*/false, /*create_graph=*/false,
      /*allow_unused=*/true);
  for (size_t i = 0; i < shared_.size(); ++i) {
    if (!gradients[i].defined()) {
      continue;  // no token of this batch came by
    }
    const at::Tensor gradient = gradients[i].contiguous();
    int64_t row = 0;
    for (size_t position = 0; position < shared_[i].members.size(); ++position) {
      const size_t index = shared_[i].members[position];
      parameters_[index]->Step(gradient.narrow(0, row, shared_[i].rows[position]), rates_[index]);
      row += shared_[i].rows[position];
    }
  }
  if (cuda) {
    CheckCuda(CudaKernels().advance_step(state_.step, CudaKernels().current_stream()));
  } else {
    ++*state_.step;
  }
}

// Capturing runs nothing: a block that cannot be captured loses no step.
void BlockTuner::CaptureStep() {
  const CudaApi& cuda = CudaKernels();
  graph_->own.synchronize();
  graph_->handle = cuda.graph_create();
  bool capturing = false;
  try {
    cuda.graph_capture_begin(graph_->handle);
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
}

std::vector<float> BlockTuner::LossCurve() const {
  const at::NoGradGuard no_grad;
  if (graph_ != nullptr) {
    graph_->own.synchronize();
  }
  const at::Tensor curve = loss_curve_.narrow(0, 0, steps_).cpu();
  return {curve.const_data_ptr<float>(), curve.const_data_ptr<float>() + steps_};
}

int64_t BlockTuner::BestStep() const {
  if (graph_ != nullptr) {
    graph_->own.synchronize();
  }
  return best_step_.item<int64_t>();
}

std::vector<std::optional<AffineQuantizedTensor>> BlockTuner::BestRecords() const {
  std::vector<std::optional<AffineQuantizedTensor>> records(parameters_.size());
  for (size_t i = 0; i < parameters_.size(); ++i) {
    if (shared_of_[i] >= 0) {
      records[i] = parameters_[i]->BestRecord();
    }
  }
  return records;
}

}  // namespace ptq
