// The learned-scale recipe's fused loops on a CUDA device: the host loops of
// auto_round/learned_scale_loops.h, built with -fmad=false. A forward pass gives the host's bits;
// sums are added in another order, but the same one in every run.
#include <cuda_runtime.h>

#include <cstdint>

#include "algorithms/auto_round/learned_scale_math.h"
#include "algorithms/auto_round/learned_scale_state.h"
#include "algorithms/auto_round/tuning_state.h"
#include "algorithms/cuda/kernels.h"
#include "algorithms/cuda/weight_units.cuh"

namespace ptq {
namespace {

namespace r = rounding;

// Values of one group, of the forward pass and of the next one.
struct GroupNow {
  float scale;
  float zero_point;
  r::CodeRange range;
};
__device__ GroupNow GroupAt(const LearnedScaleState& state, int64_t group) {
  return {r::LearnedScale(state.start_scale[group], state.factor[group]), state.zero_point[group],
          r::RangeOf(state.bits, state.symmetric)};
}

// What a step reads of kVector values from `at` on.
template <typename Word, int kVector>
struct LoadedPack {
  Pack<Word, kVector> gradients;
  Pack<float, kVector> positions;
  Pack<uint16_t, kVector> first;
  Pack<uint16_t, kVector> second;
};
template <typename Word, int kVector>
__device__ LoadedPack<Word, kVector> LoadAt(const LearnedScaleState& state, int64_t at) {
  return {LoadPack<Word, kVector>(static_cast<const Word*>(state.gradient) + at),
          LoadPack<float, kVector>(state.position + at),
          LoadPack<uint16_t, kVector>(state.first_moment + at),
          LoadPack<uint16_t, kVector>(state.second_moment + at)};
}

struct Rates {
  float value;
  float first_correction;
  float second_correction;
};
__device__ Rates RatesNow(const StepRates& rates) {
  const int64_t step = *rates.step;
  return {rates.value[step], rates.first_correction[step], rates.second_correction[step]};
}

// Steps the values and returns the new positions; adds to the factor's gradient.
template <typename Storage, int kVector>
__device__ Pack<float, kVector> StepPack(const LearnedScaleState& state, const GroupNow& group,
                                         const Rates& rates,
                                         LoadedPack<typename Storage::Word, kVector> pack,
                                         int64_t at, float& sum) {
#pragma unroll
  for (int k = 0; k < kVector; ++k) {
    const float g = Storage::Load(pack.gradients.lane[k]);
    const r::Code code = r::ChooseCode(pack.positions.lane[k], 0.0f, group.zero_point, group.range);
    const r::AdamUpdate update = r::AdamStep(
        (g * group.scale) * code.inside, r::BFloat16::Load(pack.first.lane[k]),
        r::BFloat16::Load(pack.second.lane[k]), rates.first_correction, rates.second_correction);
    pack.first.lane[k] = r::BFloat16::Store(r::RoundToBFloat16(update.first));
    pack.second.lane[k] = r::BFloat16::Store(r::RoundToBFloat16(update.second));
    pack.positions.lane[k] -= rates.value * update.direction;
    sum += g * (code.code - group.zero_point);
  }
  StorePack(state.position + at, pack.positions);
  StorePack(state.first_moment + at, pack.first);
  StorePack(state.second_moment + at, pack.second);
  return pack.positions;
}

template <typename Storage, typename Rounding, int kVector>
__device__ void DecodePack(const LearnedScaleState& state, int64_t group, const GroupNow& now,
                           const Pack<float, kVector>& positions, int64_t at) {
  Pack<float, kVector> codes;
#pragma unroll
  for (int k = 0; k < kVector; ++k) {
    codes.lane[k] =
        r::ChooseCode(positions.lane[k], 0.0f, now.zero_point, now.range).code - now.zero_point;
  }
  StoreDecoded<Storage, Rounding>(state.fp8, state.fake_quantized, codes, at, group,
                                  state.group_size, now.scale);
}

// A group's factor t after its step.
struct Factor {
  float value;
  float first_moment;
  float second_moment;

  __device__ void Keep(const LearnedScaleState& state, int64_t group) const {
    state.factor[group] = value;
    state.factor_first_moment[group] = first_moment;
    state.factor_second_moment[group] = second_moment;
  }
};
__device__ Factor SteppedFactor(const LearnedScaleState& state, const StepRates& rates,
                                int64_t group, float gradient) {
  const int64_t step = *rates.step;
  const r::AdamUpdate update =
      r::AdamStep(gradient * state.start_scale[group], state.factor_first_moment[group],
                  state.factor_second_moment[group], rates.first_correction[step],
                  rates.second_correction[step]);
  return {state.factor[group] - rates.range[step] * update.direction, update.first, update.second};
}

// One warp a unit, kVector neighbouring elements a lane.
template <typename Storage, typename Rounding, int kVector>
__global__ void __launch_bounds__(kThreads)
    FakeQuantizeKernel(LearnedScaleState state, int64_t units) {
  const int lane = threadIdx.x % kWarp;
  const int64_t index = blockIdx.x * int64_t{kWarpsPerBlock} + threadIdx.x / kWarp;
  if (index >= units) {
    return;
  }
  const WeightUnit unit = UnitAt(state, index);
  const GroupNow now = GroupAt(state, unit.group);
  for (int64_t i = lane * kVector; i < unit.length; i += kWarp * kVector) {
    const int64_t at = unit.begin + i;
    DecodePack<Storage, Rounding>(state, unit.group, now,
                                  LoadPack<float, kVector>(state.position + at), at);
  }
}

template <typename Storage, int kVector>
__global__ void __launch_bounds__(kThreads)
    StepPositionsKernel(LearnedScaleState state, StepRates rates, int64_t units) {
  const int lane = threadIdx.x % kWarp;
  const int64_t index = blockIdx.x * int64_t{kWarpsPerBlock} + threadIdx.x / kWarp;
  if (index >= units) {
    return;
  }
  const Rates current = RatesNow(rates);
  const WeightUnit unit = UnitAt(state, index);
  const GroupNow now = GroupAt(state, unit.group);
  float sum = 0.0f;
  for (int64_t i = lane * kVector; i < unit.length; i += kWarp * kVector) {
    const int64_t at = unit.begin + i;
    StepPack<Storage, kVector>(state, now, current,
                               LoadAt<typename Storage::Word, kVector>(state, at), at, sum);
  }
  sum = LaneSum<kWarp>(sum);
  if (lane == 0) {
    state.factor_gradient[index] = sum;
  }
}

// One warp a group.
__global__ void __launch_bounds__(kThreads)
    StepFactorsKernel(LearnedScaleState state, StepRates rates) {
  const int lane = threadIdx.x % kWarp;
  const int64_t group = blockIdx.x * int64_t{kWarpsPerBlock} + threadIdx.x / kWarp;
  if (group >= state.groups) {
    return;
  }
  const int64_t per_group = state.units_per_group();
  float gradient = 0.0f;
  for (int64_t i = lane; i < per_group; i += kWarp) {
    gradient += state.factor_gradient[group * per_group + i];
  }
  gradient = LaneSum<kWarp>(gradient);
  if (lane == 0) {
    SteppedFactor(state, rates, group, gradient).Keep(state, group);
  }
}

// The step and the next forward pass at once; kLanes lanes a group, whose values stay in registers.
// A lane has kGroups groups, for more loads in flight.
template <typename Storage, typename Rounding, int kLanes, int kGroups>
__global__ void __launch_bounds__(kThreads)
    StepGroupsKernel(LearnedScaleState state, StepRates rates) {
  using Word = typename Storage::Word;
  constexpr int64_t kBlockGroups = kThreads / kLanes;
  const int64_t first = blockIdx.x * kGroups * kBlockGroups + threadIdx.x / kLanes;
  const int64_t offset = threadIdx.x % kLanes * kLanePack;
  LoadedPack<Word, kLanePack> loaded[kGroups];
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    const int64_t group = first + i * kBlockGroups;
    if (group < state.groups) {
      loaded[i] = LoadAt<Word, kLanePack>(state, group * state.group_size + offset);
    }
  }
  const Rates current = RatesNow(rates);
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    const int64_t group = first + i * kBlockGroups;
    if (group >= state.groups) {
      return;
    }
    const int64_t at = group * state.group_size + offset;
    GroupNow now = GroupAt(state, group);
    float sum = 0.0f;
    const auto positions = StepPack<Storage, kLanePack>(state, now, current, loaded[i], at, sum);
    const Factor factor = SteppedFactor(state, rates, group, LaneSum<kLanes>(sum));
    __syncwarp(__activemask());  // all lanes have read the old factor
    if (offset == 0) {
      factor.Keep(state, group);
    }
    now.scale = r::LearnedScale(state.start_scale[group], factor.value);
    DecodePack<Storage, Rounding>(state, group, now, positions, at);
  }
}

// Likewise, one block a group: the new positions are read back.
template <typename Storage, typename Rounding, int kVector>
__global__ void __launch_bounds__(kThreads)
    StepLongGroupsKernel(LearnedScaleState state, StepRates rates) {
  __shared__ float scratch[kWarpsPerBlock];
  const int64_t group = blockIdx.x;
  const int64_t begin = group * state.group_size;
  const Rates current = RatesNow(rates);
  GroupNow now = GroupAt(state, group);
  float sum = 0.0f;
  for (int64_t i = threadIdx.x * kVector; i < state.group_size; i += kThreads * kVector) {
    StepPack<Storage, kVector>(state, now, current,
                               LoadAt<typename Storage::Word, kVector>(state, begin + i), begin + i,
                               sum);
  }
  const Factor factor = SteppedFactor(state, rates, group, BlockSum(sum, scratch));
  __syncthreads();  // all threads have read the old factor
  if (threadIdx.x == 0) {
    factor.Keep(state, group);
  }
  now.scale = r::LearnedScale(state.start_scale[group], factor.value);
  for (int64_t i = threadIdx.x * kVector; i < state.group_size; i += kThreads * kVector) {
    DecodePack<Storage, Rounding>(state, group, now,
                                  LoadPack<float, kVector>(state.position + begin + i), begin + i);
  }
}

template <typename Storage, typename Rounding>
void LaunchForward(const LearnedScaleState& state, cudaStream_t stream) {
  const int64_t units = state.units();
  const unsigned blocks = BlocksFor(units, kWarpsPerBlock);
  if (FourFit(state.group_size, state.fake_quantized, sizeof(typename Storage::Word))) {
    FakeQuantizeKernel<Storage, Rounding, 4><<<blocks, kThreads, 0, stream>>>(state, units);
  } else {
    FakeQuantizeKernel<Storage, Rounding, 1><<<blocks, kThreads, 0, stream>>>(state, units);
  }
}

template <typename Storage, typename Rounding>
void LaunchStep(const LearnedScaleState& state, const StepRates& rates, cudaStream_t stream) {
  using Word = typename Storage::Word;
  const bool four = FourFit(state.group_size, state.gradient, sizeof(Word)) &&
                    FourFit(state.group_size, state.fake_quantized, sizeof(Word));
  if (four && WithLanes(state.group_size, [&](auto lanes) {
        constexpr int kLanes = decltype(lanes)::value;
        constexpr int kGroups = 2;
        StepGroupsKernel<Storage, Rounding, kLanes, kGroups>
            <<<BlocksFor(state.groups, kGroups * kThreads / kLanes), kThreads, 0, stream>>>(state,
                                                                                            rates);
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
    StepPositionsKernel<Storage, 4><<<blocks, kThreads, 0, stream>>>(state, rates, units);
  } else {
    StepPositionsKernel<Storage, 1><<<blocks, kThreads, 0, stream>>>(state, rates, units);
  }
  StepFactorsKernel<<<BlocksFor(state.groups, kWarpsPerBlock), kThreads, 0, stream>>>(state, rates);
  LaunchForward<Storage, Rounding>(state, stream);
}

}  // namespace

int LaunchFakeQuantizePositions(const LearnedScaleState& state, void* stream) {
  return WithStorage(state.storage, [&](auto storage, auto rounding) {
    LaunchForward<decltype(storage), decltype(rounding)>(state, static_cast<cudaStream_t>(stream));
  });
}

int LaunchStepPositions(const LearnedScaleState& state, const StepRates& rates, void* stream) {
  return WithStorage(state.storage, [&](auto storage, auto rounding) {
    LaunchStep<decltype(storage), decltype(rounding)>(state, rates,
                                                      static_cast<cudaStream_t>(stream));
  });
}

}  // namespace ptq
