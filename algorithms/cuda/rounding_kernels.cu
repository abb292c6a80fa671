// Auto-Round's fused loops on a CUDA device: fake quantization, gradient with signed step, loss.
// The arithmetic is rounding_math.h's, built with -fmad=false: a forward pass gives the host's
// bits; sums are added in another order, but the same one in every run.
#include <cuda_runtime.h>

#include <cstdint>

#include "algorithms/auto_round/rounding_math.h"
#include "algorithms/auto_round/rounding_state.h"
#include "algorithms/auto_round/tuning_state.h"
#include "algorithms/cuda/kernels.h"

namespace ptq {
namespace {

namespace r = rounding;

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 8;
constexpr int kThreads = kWarp * kWarpsPerBlock;

template <typename Word>
struct alignas(4 * sizeof(Word)) Four {
  Word lane[4];
};

// Sum over a warp, the same on all lanes and in every run.
__device__ float WarpSum(float x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
  }
  return x;
}

__device__ r::GroupParameters ParametersOf(const RoundingState& state, int64_t group) {
  return r::ChooseGroupParameters(state.minimum[group], state.maximum[group], state.alpha[group],
                                  state.beta[group], state.bits, state.symmetric);
}

// One warp a unit, kVector neighbouring elements a lane.
template <typename Storage, typename Rounding, int kVector>
__global__ void __launch_bounds__(kThreads) FakeQuantizeKernel(RoundingState state, int64_t units) {
  using Word = typename Storage::Word;
  const int lane = threadIdx.x % kWarp;
  const int64_t index = blockIdx.x * int64_t{kWarpsPerBlock} + threadIdx.x / kWarp;
  if (index >= units) {
    return;
  }
  const WeightUnit unit = UnitAt(state, index);
  const r::GroupParameters group = ParametersOf(state, unit.group);
  if (lane == 0 && unit.begin == unit.group * state.group_size) {
    state.scale[unit.group] = group.scale;
    state.zero_point[unit.group] = group.zero_point;
  }
  const r::CodeRange range = r::RangeOf(state.bits, state.symmetric);
  const Word* weight = static_cast<const Word*>(state.weight) + unit.begin;
  const float* value = state.value + unit.begin;
  Word* output = static_cast<Word*>(state.fake_quantized) + unit.begin;
  for (int64_t i = lane * kVector; i < unit.length; i += kWarp * kVector) {
    alignas(16) Word weights[kVector];
    alignas(16) float values[kVector];
    alignas(16) Word outputs[kVector];
    if constexpr (kVector == 4) {
      *reinterpret_cast<Four<Word>*>(weights) = *reinterpret_cast<const Four<Word>*>(weight + i);
      *reinterpret_cast<float4*>(values) = *reinterpret_cast<const float4*>(value + i);
    } else {
      weights[0] = weight[i];
      values[0] = value[i];
    }
    for (int k = 0; k < kVector; ++k) {
      const r::Code code = r::ChooseCode(Storage::Load(weights[k]) / group.scale, values[k],
                                         group.zero_point, range);
      outputs[k] = Storage::Store(Rounding::Round(group.scale * (code.code - group.zero_point)));
    }
    if constexpr (kVector == 4) {
      *reinterpret_cast<Four<Word>*>(output + i) = *reinterpret_cast<const Four<Word>*>(outputs);
    } else {
      output[i] = outputs[0];
    }
  }
}

// Codes of the forward pass are kept first where the step improved on all before it.
template <typename Storage, int kVector>
__global__ void __launch_bounds__(kThreads)
    StepValuesKernel(RoundingState state, StepRates rates, int64_t units) {
  using Word = typename Storage::Word;
  const int lane = threadIdx.x % kWarp;
  const int64_t index = blockIdx.x * int64_t{kWarpsPerBlock} + threadIdx.x / kWarp;
  if (index >= units) {
    return;
  }
  const bool improved = *rates.improved != 0;
  const float rate = rates.value[*rates.step];
  const WeightUnit unit = UnitAt(state, index);
  const float scale = state.scale[unit.group];
  const float zero_point = state.zero_point[unit.group];
  const float step = scale < 0.0f ? -rate : rate;
  if (improved && lane == 0 && unit.begin == unit.group * state.group_size) {
    state.best_scale[unit.group] = scale;
    state.best_zero_point[unit.group] = zero_point;
  }
  const int offset = state.symmetric ? 0 : 1 << (state.bits - 1);
  const r::CodeRange range = r::RangeOf(state.bits, state.symmetric);
  const Word* weight = static_cast<const Word*>(state.weight) + unit.begin;
  const Word* gradient = static_cast<const Word*>(state.gradient) + unit.begin;
  float* value = state.value + unit.begin;
  int8_t* best_codes = state.best_codes + unit.begin;
  float scale_sum = 0.0f;
  float clamped_sum = 0.0f;
  for (int64_t i = lane * kVector; i < unit.length; i += kWarp * kVector) {
    alignas(16) Word weights[kVector];
    alignas(16) Word gradients[kVector];
    alignas(16) float values[kVector];
    alignas(16) int8_t codes[kVector];
    if constexpr (kVector == 4) {
      *reinterpret_cast<Four<Word>*>(weights) = *reinterpret_cast<const Four<Word>*>(weight + i);
      *reinterpret_cast<Four<Word>*>(gradients) =
          *reinterpret_cast<const Four<Word>*>(gradient + i);
      *reinterpret_cast<float4*>(values) = *reinterpret_cast<const float4*>(value + i);
    } else {
      weights[0] = weight[i];
      gradients[0] = gradient[i];
      values[0] = value[i];
    }
    for (int k = 0; k < kVector; ++k) {
      const float g = Storage::Load(gradients[k]);
      const float ratio = Storage::Load(weights[k]) / scale;
      const r::Code code = r::ChooseCode(ratio, values[k], zero_point, range);
      codes[k] = static_cast<int8_t>(static_cast<int>(code.code) - offset);
      values[k] -= step * (code.inside * r::Sign(g));
      scale_sum += g * ((code.code - zero_point) - code.inside * ratio);
      clamped_sum += g * (1.0f - code.inside);
    }
    if constexpr (kVector == 4) {
      *reinterpret_cast<float4*>(value + i) = *reinterpret_cast<const float4*>(values);
      if (improved) {
        *reinterpret_cast<Four<int8_t>*>(best_codes + i) =
            *reinterpret_cast<const Four<int8_t>*>(codes);
      }
    } else {
      value[i] = values[0];
      if (improved) {
        best_codes[i] = codes[0];
      }
    }
  }
  scale_sum = WarpSum(scale_sum);
  clamped_sum = WarpSum(clamped_sum);
  if (lane == 0) {
    state.scale_gradient[index] = scale_sum;
    state.clamped_gradient[index] = clamped_sum;
  }
}

// One warp a group.
__global__ void __launch_bounds__(kThreads) StepRangesKernel(RoundingState state, StepRates rates) {
  const int lane = threadIdx.x % kWarp;
  const int64_t group = blockIdx.x * int64_t{kWarpsPerBlock} + threadIdx.x / kWarp;
  if (group >= state.groups) {
    return;
  }
  const int64_t per_group =
      (state.group_size + RoundingState::kUnitElements - 1) / RoundingState::kUnitElements;
  r::GroupGradient gradient{0.0f, 0.0f};
  for (int64_t i = lane; i < per_group; i += kWarp) {
    gradient.scale += state.scale_gradient[group * per_group + i];
    gradient.clamped += state.clamped_gradient[group * per_group + i];
  }
  gradient.scale = WarpSum(gradient.scale);
  gradient.clamped = WarpSum(gradient.clamped);
  if (lane == 0) {
    const r::RangeFactors factors =
        r::StepRange({state.alpha[group], state.beta[group]}, state.minimum[group],
                     state.maximum[group], gradient, ParametersOf(state, group), state.bits,
                     state.symmetric, rates.range[*rates.step]);
    state.alpha[group] = factors.alpha;
    state.beta[group] = factors.beta;
  }
}

int64_t BlocksFor(int64_t warps) { return (warps + kWarpsPerBlock - 1) / kWarpsPerBlock; }

template <typename Word>
bool FourFit(const RoundingState& state, const void* other) {
  const auto aligned = [](const void* pointer, size_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
  };
  return state.group_size % 4 == 0 && aligned(state.weight, 4 * sizeof(Word)) &&
         aligned(other, 4 * sizeof(Word)) && aligned(state.value, 16) &&
         aligned(state.best_codes, 4);
}

template <typename Storage, typename Rounding>
cudaError_t LaunchFakeQuantize(const RoundingState& state, cudaStream_t stream) {
  const int64_t units = state.units();
  const auto blocks = static_cast<unsigned>(BlocksFor(units));
  if (FourFit<typename Storage::Word>(state, state.fake_quantized)) {
    FakeQuantizeKernel<Storage, Rounding, 4><<<blocks, kThreads, 0, stream>>>(state, units);
  } else {
    FakeQuantizeKernel<Storage, Rounding, 1><<<blocks, kThreads, 0, stream>>>(state, units);
  }
  return cudaGetLastError();
}

template <typename Storage>
cudaError_t LaunchStep(const RoundingState& state, const StepRates& rates, cudaStream_t stream) {
  const int64_t units = state.units();
  const auto blocks = static_cast<unsigned>(BlocksFor(units));
  if (FourFit<typename Storage::Word>(state, state.gradient)) {
    StepValuesKernel<Storage, 4><<<blocks, kThreads, 0, stream>>>(state, rates, units);
  } else {
    StepValuesKernel<Storage, 1><<<blocks, kThreads, 0, stream>>>(state, rates, units);
  }
  StepRangesKernel<<<static_cast<unsigned>(BlocksFor(state.groups)), kThreads, 0, stream>>>(state,
                                                                                            rates);
  return cudaGetLastError();
}

}  // namespace

int LaunchFakeQuantize(const RoundingState& state, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (state.storage) {
    case WeightStorage::kFloat32:
      return LaunchFakeQuantize<r::Float32, r::Unrounded>(state, cuda_stream);
    case WeightStorage::kFloat32RoundedToBFloat16:
      return LaunchFakeQuantize<r::Float32, r::RoundedToBFloat16>(state, cuda_stream);
    case WeightStorage::kFloat32RoundedToHalf:
      return LaunchFakeQuantize<r::Float32, r::RoundedToHalf>(state, cuda_stream);
    case WeightStorage::kBFloat16:
      return LaunchFakeQuantize<r::BFloat16, r::RoundedToBFloat16>(state, cuda_stream);
    case WeightStorage::kHalf:
      return LaunchFakeQuantize<r::Half, r::RoundedToHalf>(state, cuda_stream);
  }
  return cudaErrorInvalidValue;
}

int LaunchStepRounding(const RoundingState& state, const StepRates& rates, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (state.storage) {
    case WeightStorage::kBFloat16:
      return LaunchStep<r::BFloat16>(state, rates, cuda_stream);
    case WeightStorage::kHalf:
      return LaunchStep<r::Half>(state, rates, cuda_stream);
    default:
      return LaunchStep<r::Float32>(state, rates, cuda_stream);
  }
}

}  // namespace ptq
