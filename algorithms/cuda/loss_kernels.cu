// The block reconstruction loss with its gradient on a CUDA device: the host loops of
// auto_round/loss_loops.h, built with -fmad=false.
#include <cuda_runtime.h>

#include <cstdint>

#include "algorithms/auto_round/rounding_math.h"
#include "algorithms/auto_round/tuning_state.h"
#include "algorithms/cuda/kernels.h"

namespace ptq {
namespace {

namespace r = rounding;

constexpr int kWarp = 32;
constexpr int kTokenThreads = 128;
constexpr int kFinishThreads = 1024;

// Sum over a block, valid in thread 0; the same in every run. `scratch` has one entry a warp.
template <typename T>
__device__ T BlockSum(T x, T* scratch) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
  }
  if (threadIdx.x % kWarp == 0) {
    scratch[threadIdx.x / kWarp] = x;
  }
  __syncthreads();
  T sum = 0;
  if (threadIdx.x == 0) {
    for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) {
      sum += scratch[warp];
    }
  }
  __syncthreads();
  return sum;
}

__device__ int64_t TargetOf(const TuningState& state, int64_t step, int64_t token) {
  const int64_t sample = state.order[step * state.batch + token / state.length];
  return sample * state.length + token % state.length;
}

// One block a token.
template <typename Storage, typename Rounding>
__global__ void __launch_bounds__(kTokenThreads) LossKernel(TuningState state) {
  using Word = typename Storage::Word;
  __shared__ float scratch[kTokenThreads / kWarp];
  const int64_t token = blockIdx.x;
  const int64_t target = TargetOf(state, *state.step, token);
  const float mask = state.mask[target];
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
  sum = BlockSum(sum, scratch);
  if (threadIdx.x == 0) {
    state.token_sums[token] = sum;
  }
}

__global__ void __launch_bounds__(kFinishThreads) FinishLossKernel(TuningState state) {
  __shared__ double scratch[kFinishThreads / kWarp];
  __shared__ int scratch_count[kFinishThreads / kWarp];
  const int64_t step = *state.step;
  const int64_t tokens = state.batch * state.length;
  double sum = 0;
  int count = 0;
  for (int64_t token = threadIdx.x; token < tokens; token += kFinishThreads) {
    sum += state.token_sums[token];
    count += state.mask[TargetOf(state, step, token)] != 0.0f ? 1 : 0;
  }
  sum = BlockSum(sum, scratch);
  count = BlockSum(count, scratch_count);
  if (threadIdx.x != 0) {
    return;
  }
  const double divisor = static_cast<double>(count) * static_cast<double>(state.width);
  const float loss = count > 0 ? static_cast<float>(sum / divisor) : r::FloatOf(0x7FC00000u);
  state.loss_curve[step] = loss;
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
  FinishLossKernel<<<1, kFinishThreads, 0, cuda_stream>>>(state);
  return cudaGetLastError();
}

}  // namespace ptq
