// The block reconstruction loss with its gradient on a CUDA device: the host loops of
// auto_round/loss_loops.h, built with -fmad=false.
#include <cuda_runtime.h>

#include <cstdint>

#include "algorithms/auto_round/rounding_math.h"
#include "algorithms/auto_round/tuning_state.h"
#include "algorithms/cuda/kernels.h"
#include "algorithms/cuda/packs.cuh"

namespace ptq {
namespace {

namespace r = rounding;

constexpr int kTokenThreads = 128;
constexpr int kFinishThreads = 1024;

// The row of the batch's token in a tensor that has a sample's rows where `places` says: `order` or
// `slots`.
__device__ int64_t RowOf(const TuningState& state, const int64_t* places, int64_t step,
                         int64_t token) {
  return places[step * state.batch + token / state.length] * state.length + token % state.length;
}

// One block a token.
template <typename Storage, typename Rounding>
__global__ void __launch_bounds__(kTokenThreads) LossKernel(TuningState state) {
  using Word = typename Storage::Word;
  const int64_t token = blockIdx.x;
  const int64_t step = *state.step;
  const int64_t in_batch = state.first * state.length + token;
  const int64_t target = RowOf(state, state.slots, step, in_batch);
  const float mask = state.mask[RowOf(state, state.order, step, in_batch)];
  const float scale = mask * state.gradient_scale;
  const Word* outputs = static_cast<const Word*>(state.output) + token * state.width;
  const Word* targets = static_cast<const Word*>(state.targets) + target * state.width;
  Word* gradients = static_cast<Word*>(state.gradient) + token * state.width;
  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < state.width; i += kTokenThreads) {
    const float raw = Storage::Load(outputs[i]) - Storage::Load(targets[i]);
    const float difference = mask == 0.0f ? 0.0f : raw * mask;
    gradients[i] = Storage::Store(Rounding::Round(difference * scale));
    sum += difference * difference;
  }
  sum = BlockSum(sum);
  if (threadIdx.x == 0) {
    state.token_sums[in_batch] = sum;
  }
}

// One block a token. 16-bit outputs.
template <typename T>
__global__ void __launch_bounds__(kTokenThreads) DifferenceKernel(TuningState state) {
  const int64_t token = blockIdx.x;
  const int64_t step = *state.step;
  const int64_t in_batch = state.first * state.length + token;
  const int64_t target = RowOf(state, state.slots, step, in_batch);
  const float mask = state.mask[RowOf(state, state.order, step, in_batch)];
  const T* outputs = static_cast<const T*>(state.output) + token * state.width;
  const T* targets = static_cast<const T*>(state.targets) + target * state.width;
  __nv_bfloat16* differences = static_cast<__nv_bfloat16*>(state.difference) + token * state.width;
  for (int64_t i = threadIdx.x * kPack; i < state.width; i += kTokenThreads * kPack) {
    Values difference = Load(outputs + i);
    const Values subtracted = Load(targets + i);
    for (int k = 0; k < kPack; ++k) {
      const float raw = difference.lane[k] - subtracted.lane[k];
      difference.lane[k] = mask == 0.0f ? 0.0f : raw * mask;
    }
    Store(differences + i, difference);
  }
}

// Likewise: gradient = w mask gradient_scale F'd, and the token's part of the loss.
template <typename T>
__global__ void __launch_bounds__(kTokenThreads) MetricGradientKernel(TuningState state) {
  const int64_t token = blockIdx.x;
  const int64_t in_batch = state.first * state.length + token;
  const int64_t row = RowOf(state, state.order, *state.step, in_batch);
  const float weight = state.token_weights[row];
  const float scale = weight * state.mask[row] * state.gradient_scale;
  const auto* differences =
      static_cast<const __nv_bfloat16*>(state.difference) + token * state.width;
  const auto* products = static_cast<const __nv_bfloat16*>(state.product) + token * state.width;
  T* gradients = static_cast<T*>(state.gradient) + token * state.width;
  float sum = 0.0f;
  for (int64_t i = threadIdx.x * kPack; i < state.width; i += kTokenThreads * kPack) {
    const Values difference = Load(differences + i);
    Values product = Load(products + i);
    for (int k = 0; k < kPack; ++k) {
      sum += difference.lane[k] * product.lane[k];
      product.lane[k] *= scale;
    }
    Store(gradients + i, product);
  }
  sum = BlockSum(sum);
  if (threadIdx.x == 0) {
    state.token_sums[in_batch] = weight * sum;
  }
}

__global__ void __launch_bounds__(kFinishThreads) FinishLossKernel(TuningState state) {
  const int64_t step = *state.step;
  const int64_t tokens = state.batch * state.length;
  double sum = 0;
  int count = 0;
  for (int64_t token = threadIdx.x; token < tokens; token += kFinishThreads) {
    sum += state.token_sums[token];
    count += state.mask[RowOf(state, state.order, step, token)] != 0.0f ? 1 : 0;
  }
  sum = BlockSum(sum);
  count = BlockSum(count);
  if (threadIdx.x != 0) {
    return;
  }
  const double divisor = static_cast<double>(count) * static_cast<double>(state.width);
  const float loss = count > 0 ? static_cast<float>(sum / divisor) : r::FloatOf(0x7FC00000u);
  state.loss_curve[step] = loss;
  if (state.best_loss == nullptr) {
    return;
  }
  const bool improved = loss < *state.best_loss;  // never if it is not a number
  *state.improved = improved ? 1 : 0;
  if (improved) {
    *state.best_loss = loss;
    *state.best_step = step;
  }
}

}  // namespace

int LaunchTuningLoss(const TuningState& state, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const auto blocks = static_cast<unsigned>(state.tokens());
  switch (state.dtype) {
    case HiddenDtype::kFloat32:
      LossKernel<r::Float32, r::Unrounded><<<blocks, kTokenThreads, 0, cuda_stream>>>(state);
      break;
    case HiddenDtype::kBFloat16:
      LossKernel<r::BFloat16, r::RoundedToBFloat16>
          <<<blocks, kTokenThreads, 0, cuda_stream>>>(state);
      break;
    case HiddenDtype::kHalf:
      LossKernel<r::Half, r::RoundedToHalf><<<blocks, kTokenThreads, 0, cuda_stream>>>(state);
      break;
  }
  if (state.complete()) FinishLossKernel<<<1, kFinishThreads, 0, cuda_stream>>>(state);
  return cudaGetLastError();
}

int LaunchTuningDifference(const TuningState& state, void* stream) {
  if (state.width % kPack != 0) return cudaErrorInvalidValue;
  return WithType(state.dtype, [&](auto type) {
    DifferenceKernel<decltype(type)><<<static_cast<unsigned>(state.tokens()), kTokenThreads, 0,
                                       static_cast<cudaStream_t>(stream)>>>(state);
  });
}

int LaunchMetricLoss(const TuningState& state, void* stream) {
  if (state.width % kPack != 0) return cudaErrorInvalidValue;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  return WithType(state.dtype, [&](auto type) {
    MetricGradientKernel<decltype(type)>
        <<<static_cast<unsigned>(state.tokens()), kTokenThreads, 0, cuda_stream>>>(state);
    if (state.complete()) FinishLossKernel<<<1, kFinishThreads, 0, cuda_stream>>>(state);
  });
}

}  // namespace ptq
