// Auto-Round's fused loops on a CUDA device: fake quantization, gradient with signed step, loss.
// The arithmetic is rounding_math.h's, built with -fmad=false: a forward pass gives the host's
// bits; sums are added in another order, but the same one in every run.
#include <cuda_runtime.h>

#include <cstdint>

#include "algorithms/auto_round/rounding_math.h"
#include "algorithms/auto_round/rounding_state.h"
#include "algorithms/auto_round/tuning_state.h"
#include "algorithms/cuda/kernels.h"
#include "algorithms/cuda/weight_units.cuh"

namespace ptq {
namespace {

namespace r = rounding;

// A group in the forward pass whose gradient is in hand, and in the next one.
struct GroupNow {
  float scale;
  float zero_point;
  r::CodeRange range;
};
__device__ GroupNow GroupAt(const RoundingState& state, int64_t group) {
  return {state.scale[group], state.zero_point[group], r::RangeOf(state.bits, state.symmetric)};
}
__device__ r::GroupParameters ParametersOf(const RoundingState& state, int64_t group,
                                           r::RangeFactors factors) {
  return r::ChooseGroupParameters(state.minimum[group], state.maximum[group], factors.alpha,
                                  factors.beta, state.bits, state.symmetric);
}

struct StepNow {
  float rate;
  bool improved;  // codes and scales of the forward pass are kept before the step
};
__device__ StepNow StepAt(const StepRates& rates) {
  return {rates.value[*rates.step], *rates.improved != 0};
}

template <typename Word, int kVector>
struct WeightAndValue {
  Pack<Word, kVector> weights;
  Pack<float, kVector> values;
};
template <typename Word, int kVector>
__device__ WeightAndValue<Word, kVector> LoadValues(const RoundingState& state, int64_t at) {
  return {LoadPack<Word, kVector>(static_cast<const Word*>(state.weight) + at),
          LoadPack<float, kVector>(state.value + at)};
}

// Steps `kVector` values from `at` on and returns them with their weights; adds to the group's
// gradient.
template <typename Storage, int kVector>
__device__ WeightAndValue<typename Storage::Word, kVector> StepPack(const RoundingState& state,
                                                                    const GroupNow& group,
                                                                    StepNow now, int64_t at,
                                                                    r::GroupGradient& sum) {
  using Word = typename Storage::Word;
  auto pack = LoadValues<Word, kVector>(state, at);
  const auto gradients = LoadPack<Word, kVector>(static_cast<const Word*>(state.gradient) + at);
  const float step = group.scale < 0.0f ? -now.rate : now.rate;
  const int offset = state.symmetric ? 0 : 1 << (state.bits - 1);
  Pack<int8_t, kVector> codes;
#pragma unroll
  for (int k = 0; k < kVector; ++k) {
    const float g = Storage::Load(gradients.lane[k]);
    const float ratio = Storage::Load(pack.weights.lane[k]) / group.scale;
    const r::Code code = r::ChooseCode(ratio, pack.values.lane[k], group.zero_point, group.range);
    codes.lane[k] = static_cast<int8_t>(static_cast<int>(code.code) - offset);
    pack.values.lane[k] -= step * (code.inside * r::Sign(g));
    sum.scale += g * ((code.code - group.zero_point) - code.inside * ratio);
    sum.clamped += g * (1.0f - code.inside);
  }
  StorePack(state.value + at, pack.values);
  if (now.improved) {
    StorePack(state.best_codes + at, codes);
  }
  return pack;
}

template <typename Storage, typename Rounding, int kVector>
__device__ void DecodePack(const RoundingState& state, int64_t group, const GroupNow& now,
                           const WeightAndValue<typename Storage::Word, kVector>& pack,
                           int64_t at) {
  Pack<float, kVector> codes;
#pragma unroll
  for (int k = 0; k < kVector; ++k) {
    codes.lane[k] = r::ChooseCode(Storage::Load(pack.weights.lane[k]) / now.scale,
                                  pack.values.lane[k], now.zero_point, now.range)
                        .code -
                    now.zero_point;
  }
  StoreDecoded<Storage, Rounding>(state.fp8, state.fake_quantized, codes, at, group,
                                  state.group_size, now.scale);
}

// A group's range factors after their step, and what they make of it.
struct Range {
  r::RangeFactors factors;
  r::GroupParameters parameters;

  __device__ void Keep(const RoundingState& state, int64_t group) const {
    state.alpha[group] = factors.alpha;
    state.beta[group] = factors.beta;
  }
  __device__ void KeepParameters(const RoundingState& state, int64_t group) const {
    state.scale[group] = parameters.scale;
    state.zero_point[group] = parameters.zero_point;
  }
};
__device__ Range SteppedRange(const RoundingState& state, const StepRates& rates, int64_t group,
                              r::GroupGradient gradient) {
  const r::RangeFactors now{state.alpha[group], state.beta[group]};
  Range range;
  range.factors = r::StepRange(now, state.minimum[group], state.maximum[group], gradient,
                               ParametersOf(state, group, now), state.bits, state.symmetric,
                               rates.range[*rates.step]);
  range.parameters = ParametersOf(state, group, range.factors);
  return range;
}

__device__ void KeepBestGroup(const RoundingState& state, const GroupNow& now, int64_t group) {
  state.best_scale[group] = now.scale;
  state.best_zero_point[group] = now.zero_point;
}

// One warp a unit, kVector neighbouring elements a lane.
template <typename Storage, typename Rounding, int kVector>
__global__ void __launch_bounds__(kThreads) FakeQuantizeKernel(RoundingState state, int64_t units) {
  const int lane = threadIdx.x % kWarp;
  const int64_t index = blockIdx.x * int64_t{kWarpsPerBlock} + threadIdx.x / kWarp;
  if (index >= units) {
    return;
  }
  const WeightUnit unit = UnitAt(state, index);
  const r::GroupParameters parameters =
      ParametersOf(state, unit.group, {state.alpha[unit.group], state.beta[unit.group]});
  if (lane == 0 && unit.begin == unit.group * state.group_size) {
    state.scale[unit.group] = parameters.scale;
    state.zero_point[unit.group] = parameters.zero_point;
  }
  const GroupNow now{parameters.scale, parameters.zero_point,
                     r::RangeOf(state.bits, state.symmetric)};
  for (int64_t i = lane * kVector; i < unit.length; i += kWarp * kVector) {
    const int64_t at = unit.begin + i;
    DecodePack<Storage, Rounding, kVector>(
        state, unit.group, now, LoadValues<typename Storage::Word, kVector>(state, at), at);
  }
}

template <typename Storage, int kVector>
__global__ void __launch_bounds__(kThreads)
    StepValuesKernel(RoundingState state, StepRates rates, int64_t units) {
  const int lane = threadIdx.x % kWarp;
  const int64_t index = blockIdx.x * int64_t{kWarpsPerBlock} + threadIdx.x / kWarp;
  if (index >= units) {
    return;
  }
  const StepNow step = StepAt(rates);
  const WeightUnit unit = UnitAt(state, index);
  const GroupNow now = GroupAt(state, unit.group);
  if (step.improved && lane == 0 && unit.begin == unit.group * state.group_size) {
    KeepBestGroup(state, now, unit.group);
  }
  r::GroupGradient sum{0.0f, 0.0f};
  for (int64_t i = lane * kVector; i < unit.length; i += kWarp * kVector) {
    StepPack<Storage, kVector>(state, now, step, unit.begin + i, sum);
  }
  sum.scale = LaneSum<kWarp>(sum.scale);
  sum.clamped = LaneSum<kWarp>(sum.clamped);
  if (lane == 0) {
    state.scale_gradient[index] = sum.scale;
    state.clamped_gradient[index] = sum.clamped;
  }
}

// One warp a group.
__global__ void __launch_bounds__(kThreads) StepRangesKernel(RoundingState state, StepRates rates) {
  const int lane = threadIdx.x % kWarp;
  const int64_t group = blockIdx.x * int64_t{kWarpsPerBlock} + threadIdx.x / kWarp;
  if (group >= state.groups) {
    return;
  }
  const int64_t per_group = state.units_per_group();
  r::GroupGradient gradient{0.0f, 0.0f};
  for (int64_t i = lane; i < per_group; i += kWarp) {
    gradient.scale += state.scale_gradient[group * per_group + i];
    gradient.clamped += state.clamped_gradient[group * per_group + i];
  }
  gradient.scale = LaneSum<kWarp>(gradient.scale);
  gradient.clamped = LaneSum<kWarp>(gradient.clamped);
  if (lane == 0) {
    SteppedRange(state, rates, group, gradient).Keep(state, group);
  }
}

// The step and the next forward pass at once; kLanes lanes a group, whose values stay in registers.
template <typename Storage, typename Rounding, int kLanes>
__global__ void __launch_bounds__(kThreads) StepGroupsKernel(RoundingState state, StepRates rates) {
  const int64_t thread = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  const int64_t group = thread / kLanes;
  if (group >= state.groups) {
    return;
  }
  const int64_t at = thread * kLanePack;
  const StepNow step = StepAt(rates);
  GroupNow now = GroupAt(state, group);
  r::GroupGradient sum{0.0f, 0.0f};
  const auto pack = StepPack<Storage, kLanePack>(state, now, step, at, sum);
  sum.scale = LaneSum<kLanes>(sum.scale);
  sum.clamped = LaneSum<kLanes>(sum.clamped);
  const Range range = SteppedRange(state, rates, group, sum);
  __syncwarp(__activemask());  // all lanes have read the old factors
  if (threadIdx.x % kLanes == 0) {
    if (step.improved) {
      KeepBestGroup(state, now, group);
    }
    range.Keep(state, group);
    range.KeepParameters(state, group);
  }
  now.scale = range.parameters.scale;
  now.zero_point = range.parameters.zero_point;
  DecodePack<Storage, Rounding, kLanePack>(state, group, now, pack, at);
}

// Likewise, one block a group: weights and new values are read back.
template <typename Storage, typename Rounding, int kVector>
__global__ void __launch_bounds__(kThreads)
    StepLongGroupsKernel(RoundingState state, StepRates rates) {
  __shared__ float scale_scratch[kWarpsPerBlock];
  __shared__ float clamped_scratch[kWarpsPerBlock];
  const int64_t group = blockIdx.x;
  const int64_t begin = group * state.group_size;
  const StepNow step = StepAt(rates);
  GroupNow now = GroupAt(state, group);
  r::GroupGradient sum{0.0f, 0.0f};
  for (int64_t i = threadIdx.x * kVector; i < state.group_size; i += kThreads * kVector) {
    StepPack<Storage, kVector>(state, now, step, begin + i, sum);
  }
  sum.scale = BlockSum(sum.scale, scale_scratch);
  sum.clamped = BlockSum(sum.clamped, clamped_scratch);
  const Range range = SteppedRange(state, rates, group, sum);
  __syncthreads();  // all threads have read the old factors
  if (threadIdx.x == 0) {
    if (step.improved) {
      KeepBestGroup(state, now, group);
    }
    range.Keep(state, group);
    range.KeepParameters(state, group);
  }
  now.scale = range.parameters.scale;
  now.zero_point = range.parameters.zero_point;
  for (int64_t i = threadIdx.x * kVector; i < state.group_size; i += kThreads * kVector) {
    const int64_t at = begin + i;
    DecodePack<Storage, Rounding, kVector>(
        state, group, now, LoadValues<typename Storage::Word, kVector>(state, at), at);
  }
}

template <typename Storage>
bool PacksFit(const RoundingState& state, const void* other) {
  constexpr size_t kWord = sizeof(typename Storage::Word);
  return FourFit(state.group_size, state.weight, kWord) && FourFit(state.group_size, other, kWord);
}

template <typename Storage, typename Rounding>
void LaunchForward(const RoundingState& state, cudaStream_t stream) {
  const int64_t units = state.units();
  const unsigned blocks = BlocksFor(units, kWarpsPerBlock);
  if (PacksFit<Storage>(state, state.fake_quantized)) {
    FakeQuantizeKernel<Storage, Rounding, 4><<<blocks, kThreads, 0, stream>>>(state, units);
  } else {
    FakeQuantizeKernel<Storage, Rounding, 1><<<blocks, kThreads, 0, stream>>>(state, units);
  }
}

template <typename Storage, typename Rounding>
void LaunchStep(const RoundingState& state, const StepRates& rates, cudaStream_t stream) {
  const bool four =
      PacksFit<Storage>(state, state.gradient) && PacksFit<Storage>(state, state.fake_quantized);
  if (four && WithLanes(state.group_size, [&](auto lanes) {
        constexpr int kLanes = decltype(lanes)::value;
        StepGroupsKernel<Storage, Rounding, kLanes>
            <<<BlocksFor(state.groups, kThreads / kLanes), kThreads, 0, stream>>>(state, rates);
      })) {
    return;
  }
  if (state.group_size <= kLongestBlockGroup) {
    const auto blocks = static_cast<unsigned>(state.groups);
    if (four) {
      StepLongGroupsKernel<Storage, Rounding, 4><<<blocks, kThreads, 0, stream>>>(state, rates);
    } else {
      StepLongGroupsKernel<Storage, Rounding, 1><<<blocks, kThreads, 0, stream>>>(state, rates);
    }
    return;
  }
  const int64_t units = state.units();
  const unsigned blocks = BlocksFor(units, kWarpsPerBlock);
  if (four) {
    StepValuesKernel<Storage, 4><<<blocks, kThreads, 0, stream>>>(state, rates, units);
  } else {
    StepValuesKernel<Storage, 1><<<blocks, kThreads, 0, stream>>>(state, rates, units);
  }
  StepRangesKernel<<<BlocksFor(state.groups, kWarpsPerBlock), kThreads, 0, stream>>>(state, rates);
  LaunchForward<Storage, Rounding>(state, stream);
}

}  // namespace

int LaunchFakeQuantize(const RoundingState& state, void* stream) {
  return WithStorage(state.storage, [&](auto storage, auto rounding) {
    LaunchForward<decltype(storage), decltype(rounding)>(state, static_cast<cudaStream_t>(stream));
  });
}

int LaunchStepRounding(const RoundingState& state, const StepRates& rates, void* stream) {
  return WithStorage(state.storage, [&](auto storage, auto rounding) {
    LaunchStep<decltype(storage), decltype(rounding)>(state, rates,
                                                      static_cast<cudaStream_t>(stream));
  });
}

}  // namespace ptq
