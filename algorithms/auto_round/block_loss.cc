#include "algorithms/auto_round/block_loss.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <limits>

#include "algorithms/auto_round/loss_loops.h"
#include "algorithms/cuda/device_kernels.h"

namespace ptq {
namespace {

// Of the mean square of a token's target, relative to all tokens': below it the weight stays.
constexpr double kLeastSquare = 1e-6;

// Mean squares of the tokens' targets, [S, T] float32. Sample by sample, so that they have the same
// bits wherever the targets lie.
at::Tensor MeanSquares(const at::Tensor& targets, const at::Tensor& mask) {
  const auto width = static_cast<double>(targets.size(2));
  at::Tensor squares = at::empty(mask.sizes(), mask.options());
  for (int64_t sample = 0; sample < targets.size(0); ++sample) {
    const at::Tensor values =
        targets.select(0, sample).to(mask.device(), targets.scalar_type(), /*non_blocking=*/true);
    squares.select(0, sample).copy_(
        mask.is_cuda()  // norms need no wide copy
            ? at::linalg_vector_norm(values, 2, at::IntArrayRef{-1}, /*keepdim=*/false, at::kFloat)
                  .square_()
                  .div_(width)
            : values.to(at::kFloat).square().mean(-1));
  }
  return squares;
}

at::Tensor TokenWeights(const at::Tensor& targets, const at::Tensor& mask) {
  const at::Tensor counts = mask.ne(0).to(at::kFloat);
  // A masked token's values do not matter, not even if they are not finite.
  const at::Tensor squares =
      at::where(counts.ne(0), MeanSquares(targets, mask), at::zeros({}, mask.options()));
  const at::Tensor total = counts.sum().clamp_min(1);
  const at::Tensor least = squares.sum() / total * kLeastSquare;
  const at::Tensor weights =
      counts / at::maximum(squares, least).clamp_min(std::numeric_limits<float>::min());
  return weights * (total / weights.sum());
}

// What every loss has of its inputs.
TuningState SharedState(const LossInputs& inputs) {
  TuningState state;
  state.targets = inputs.step_targets().const_data_ptr();
  state.mask = inputs.mask.const_data_ptr<float>();
  state.order = inputs.order.const_data_ptr<int64_t>();
  state.slots = inputs.step_slots().const_data_ptr<int64_t>();
  state.step = inputs.step.mutable_data_ptr<int64_t>();
  state.loss_curve = inputs.loss_curve.mutable_data_ptr<float>();
  state.batch = inputs.order.size(1);
  state.length = inputs.targets.size(1);
  state.width = inputs.targets.size(2);
  state.dtype = HiddenDtypeOf(inputs.targets.scalar_type());
  return state;
}

}  // namespace

SquaredErrorLoss::SquaredErrorLoss(const LossInputs& inputs) : inputs_(inputs) {
  const at::TensorOptions on_device = inputs.mask.options();
  best_loss_ = at::empty({1}, on_device.dtype(at::kFloat));
  best_step_ = at::empty({1}, on_device.dtype(at::kLong));
  improved_ = at::empty({1}, on_device.dtype(at::kInt));
  token_sums_ =
      at::zeros({inputs.order.size(1), inputs.targets.size(1)}, on_device.dtype(at::kFloat));
  Reset();
  state_ = SharedState(inputs);
  state_.token_sums = token_sums_.mutable_data_ptr<float>();
  state_.best_loss = best_loss_.mutable_data_ptr<float>();
  state_.best_step = best_step_.mutable_data_ptr<int64_t>();
  state_.improved = improved_.mutable_data_ptr<int32_t>();
}

void SquaredErrorLoss::Reset() {
  best_loss_.fill_(std::numeric_limits<float>::infinity());
  best_step_.fill_(-1);
  improved_.zero_();
}

at::Tensor SquaredErrorLoss::Gradient(const at::Tensor& output, int64_t first) {
  at::Tensor gradient = at::empty_like(output, output.options(), at::MemoryFormat::Contiguous);
  state_.first = first;
  state_.count = output.size(0);
  state_.output = output.const_data_ptr();
  state_.gradient = gradient.mutable_data_ptr();
  state_.gradient_scale = gradient_scale;
  if (output.is_cuda()) {
    CheckCuda(CudaKernels().tuning_loss(state_, CudaKernels().current_stream()));
  } else {
    at::parallel_for(0, state_.tokens(), 64,
                     [this](int64_t begin, int64_t end) { LossOfTokens(state_, begin, end); });
    if (state_.complete()) FinishLoss(state_);
  }
  return gradient;
}

FisherLoss::FisherLoss(const LossInputs& inputs, const at::Tensor& fisher, double weight)
    : inputs_(inputs), token_weights_(TokenWeights(inputs.targets, inputs.mask)) {
  const at::ScalarType dtype = inputs.targets.scalar_type();
  const at::Tensor wide = fisher.to(inputs.mask.device(), at::kFloat);
  metric_ = (wide * (weight / wide.diagonal().mean().clamp_min(1e-30)) +
             at::eye(wide.size(0), wide.options()) * (1.0 - weight))
                .to(dtype == at::kHalf ? at::kBFloat16 : dtype);
  steps_ = at::arange(inputs.loss_curve.size(0), inputs.step.options());
  token_sums_ = at::zeros({inputs.order.size(1), inputs.targets.size(1)}, token_weights_.options());
  state_ = SharedState(inputs);
  state_.token_sums = token_sums_.mutable_data_ptr<float>();
  state_.token_weights = token_weights_.const_data_ptr<float>();
}

at::Tensor FisherLoss::Gradient(const at::Tensor& output, int64_t first) {
  state_.first = first;
  state_.count = output.size(0);
  return output.is_cuda() && output.element_size() == 2 && output.size(-1) % kHiddenPack == 0
             ? GradientByKernels(output)
             : GradientByTensors(output, first);
}

at::Tensor FisherLoss::GradientByKernels(const at::Tensor& output) {
  const CudaApi& cuda = CudaKernels();
  const at::Tensor difference = at::empty(output.sizes(), metric_.options());
  at::Tensor gradient = at::empty_like(output, output.options(), at::MemoryFormat::Contiguous);
  state_.output = output.const_data_ptr();
  state_.difference = difference.mutable_data_ptr();
  state_.gradient = gradient.mutable_data_ptr();
  state_.gradient_scale = gradient_scale;
  CheckCuda(cuda.tuning_difference(state_, cuda.current_stream()));
  const at::Tensor product = at::mm(difference.flatten(0, 1), metric_);
  state_.product = product.const_data_ptr();
  CheckCuda(cuda.metric_loss(state_, cuda.current_stream()));
  return gradient;
}

at::Tensor FisherLoss::GradientByTensors(const at::Tensor& output, int64_t first) {
  const auto rows_of = [&](const at::Tensor& places) {
    return places.index_select(0, inputs_.step).view({-1});
  };
  const int64_t count = output.size(0);
  const at::Tensor batch = rows_of(inputs_.order);
  const at::Tensor rows = batch.narrow(0, first, count);
  const at::Tensor slots = rows_of(inputs_.step_slots()).narrow(0, first, count);
  const at::Tensor mask = inputs_.mask.index_select(0, rows).unsqueeze(-1);
  const at::Tensor raw = output.to(at::kFloat) - inputs_.step_targets().index_select(0, slots);
  const at::Tensor difference = at::where(mask.eq(0), at::zeros({}, raw.options()), raw * mask);
  const at::Tensor product =
      at::matmul(difference.to(metric_.scalar_type()), metric_).to(at::kFloat);
  const at::Tensor weights = token_weights_.index_select(0, rows).unsqueeze(-1);
  token_sums_.narrow(0, first, count)
      .copy_(((difference * product).sum(-1, true) * weights).squeeze(-1));
  if (state_.complete()) {
    const at::Tensor tokens = inputs_.mask.index_select(0, batch).ne(0).sum().to(at::kFloat);
    const at::Tensor loss = token_sums_.sum() / (tokens * static_cast<double>(output.size(-1)));
    inputs_.loss_curve.copy_(at::where(steps_.eq(inputs_.step), loss, inputs_.loss_curve));
  }
  return (product * (weights * mask * gradient_scale)).to(output.scalar_type());
}

}  // namespace ptq
