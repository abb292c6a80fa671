// The learned-scale recipe's fused loops on a CUDA device: the host loops of
// auto_round/learned_scale_loops.h, built with -fmad=false. A forward pass gives the host's bits;
// sums are added in another order, but the same one in every run.
#include <cuda_runtime.h>

#include <cstdint>

#include "algorithms/auto_round/learned_scale_math.h"
#include "algorithms/auto_round/learned_scale_state.h"
#include "algorithms/auto_round/tuning_state.h"
#include "algorithms/cuda/kernels.h"

namespace ptq {
namespace {

namespace r = rounding;

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 8;
constexpr int kThreads = kWarp * kWarpsPerBlock;

// `kVector` neighbouring words, moved as one.
template <typename Word, int kVector>
struct alignas(kVector * sizeof(Word)) Pack {
  Word lane[kVector];
};
template <typename Word, int kVector>
__device__ Pack<Word, kVector> LoadPack(const Word* source) {
  return *reinterpret_cast<const Pack<Word, kVector>*>(source);
}
template <typename Word, int kVector>
__device__ void StorePack(Word* target, const Pack<Word, kVector>& pack) {
  *reinterpret_cast<Pack<Word, kVector>*>(target) = pack;
}

// Sum over a warp, the same on all lanes and in every run.
__device__ float WarpSum(float x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
  }
  return x;
}

// One warp a unit, kVector neighbouring elements a lane.
template <typename Storage, typename Rounding, int kVector>
__global__ void __launch_bounds__(kThreads)
    FakeQuantizeKernel(LearnedScaleState state, int64_t units) {
  using Word = typename Storage::Word;
  const int lane = threadIdx.x % kWarp;
  const int64_t index = blockIdx.x * int64_t{kWarpsPerBlock} + threadIdx.x / kWarp;
  if (index >= units) {
    return;
  }
  const WeightUnit unit = UnitAt(state, index);
  const float scale = r::LearnedScale(state.start_scale[unit.group], state.factor[unit.group]);
  const float zero_point = state.zero_point[unit.group];
  const r::CodeRange range = r::RangeOf(state.bits, state.symmetric);
  const float* position = state.position + unit.begin;
  Word* output = static_cast<Word*>(state.fake_quantized) + unit.begin;
  for (int64_t i = lane * kVector; i < unit.length; i += kWarp * kVector) {
    const auto positions = LoadPack<float, kVector>(position + i);
    Pack<Word, kVector> outputs;
    for (int k = 0; k < kVector; ++k) {
      const r::Code code = r::ChooseCode(positions.lane[k], 0.0f, zero_point, range);
      outputs.lane[k] = Storage::Store(Rounding::Round(scale * (code.code - zero_point)));
    }
    StorePack(output + i, outputs);
  }
}

template <typename Storage, int kVector>
__global__ void __launch_bounds__(kThreads)
    StepPositionsKernel(LearnedScaleState state, StepRates rates, int64_t units) {
  using Word = typename Storage::Word;
  const int lane = threadIdx.x % kWarp;
  const int64_t index = blockIdx.x * int64_t{kWarpsPerBlock} + threadIdx.x / kWarp;
  if (index >= units) {
    return;
  }
  const int64_t step = *rates.step;
  const float rate = rates.value[step];
  const float first_correction = rates.first_correction[step];
  const float second_correction = rates.second_correction[step];
  const WeightUnit unit = UnitAt(state, index);
  const float scale = r::LearnedScale(state.start_scale[unit.group], state.factor[unit.group]);
  const float zero_point = state.zero_point[unit.group];
  const r::CodeRange range = r::RangeOf(state.bits, state.symmetric);
  const Word* gradient = static_cast<const Word*>(state.gradient) + unit.begin;
  float* position = state.position + unit.begin;
  uint16_t* first_moment = state.first_moment + unit.begin;
  uint16_t* second_moment = state.second_moment + unit.begin;
  float sum = 0.0f;
  for (int64_t i = lane * kVector; i < unit.length; i += kWarp * kVector) {
    const auto gradients = LoadPack<Word, kVector>(gradient + i);
    auto positions = LoadPack<float, kVector>(position + i);
    auto first = LoadPack<uint16_t, kVector>(first_moment + i);
    auto second = LoadPack<uint16_t, kVector>(second_moment + i);
    for (int k = 0; k < kVector; ++k) {
      const float g = Storage::Load(gradients.lane[k]);
      const r::Code code = r::ChooseCode(positions.lane[k], 0.0f, zero_point, range);
      const r::AdamUpdate update =
          r::AdamStep((g * scale) * code.inside, r::BFloat16::Load(first.lane[k]),
                      r::BFloat16::Load(second.lane[k]), first_correction, second_correction);
      first.lane[k] = r::BFloat16::Store(r::RoundToBFloat16(update.first));
      second.lane[k] = r::BFloat16::Store(r::RoundToBFloat16(update.second));
      positions.lane[k] -= rate * update.direction;
      sum += g * (code.code - zero_point);
    }
    StorePack(position + i, positions);
    StorePack(first_moment + i, first);
    StorePack(second_moment + i, second);
  }
  sum = WarpSum(sum);
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
  const int64_t per_group =
      (state.group_size + WeightLayout::kUnitElements - 1) / WeightLayout::kUnitElements;
  float gradient = 0.0f;
  for (int64_t i = lane; i < per_group; i += kWarp) {
    gradient += state.factor_gradient[group * per_group + i];
  }
  gradient = WarpSum(gradient);
  if (lane == 0) {
    const int64_t step = *rates.step;
    const r::AdamUpdate update =
        r::AdamStep(gradient * state.start_scale[group], state.factor_first_moment[group],
                    state.factor_second_moment[group], rates.first_correction[step],
                    rates.second_correction[step]);
    state.factor_first_moment[group] = update.first;
    state.factor_second_moment[group] = update.second;
    state.factor[group] -= rates.range[step] * update.direction;
  }
}

unsigned BlocksFor(int64_t warps) {
  return static_cast<unsigned>((warps + kWarpsPerBlock - 1) / kWarpsPerBlock);
}

// Tensors of their own are aligned; `other` may be a slice.
template <typename Word>
bool FourFit(const LearnedScaleState& state, const void* other) {
  return state.group_size % 4 == 0 && reinterpret_cast<uintptr_t>(other) % (4 * sizeof(Word)) == 0;
}

template <typename Storage, typename Rounding>
cudaError_t LaunchForward(const LearnedScaleState& state, cudaStream_t stream) {
  const int64_t units = state.units();
  if (FourFit<typename Storage::Word>(state, state.fake_quantized)) {
    FakeQuantizeKernel<Storage, Rounding, 4>
        <<<BlocksFor(units), kThreads, 0, stream>>>(state, units);
  } else {
    FakeQuantizeKernel<Storage, Rounding, 1>
        <<<BlocksFor(units), kThreads, 0, stream>>>(state, units);
  }
  return cudaGetLastError();
}

template <typename Storage>
cudaError_t LaunchStep(const LearnedScaleState& state, const StepRates& rates,
                       cudaStream_t stream) {
  const int64_t units = state.units();
  if (FourFit<typename Storage::Word>(state, state.gradient)) {
    StepPositionsKernel<Storage, 4><<<BlocksFor(units), kThreads, 0, stream>>>(state, rates, units);
  } else {
    StepPositionsKernel<Storage, 1><<<BlocksFor(units), kThreads, 0, stream>>>(state, rates, units);
  }
  StepFactorsKernel<<<BlocksFor(state.groups), kThreads, 0, stream>>>(state, rates);
  return cudaGetLastError();
}

}  // namespace

int LaunchFakeQuantizePositions(const LearnedScaleState& state, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (state.storage) {
    case WeightStorage::kFloat32:
      return LaunchForward<r::Float32, r::Unrounded>(state, cuda_stream);
    case WeightStorage::kFloat32RoundedToBFloat16:
      return LaunchForward<r::Float32, r::RoundedToBFloat16>(state, cuda_stream);
    case WeightStorage::kFloat32RoundedToHalf:
      return LaunchForward<r::Float32, r::RoundedToHalf>(state, cuda_stream);
    case WeightStorage::kBFloat16:
      return LaunchForward<r::BFloat16, r::RoundedToBFloat16>(state, cuda_stream);
    case WeightStorage::kHalf:
      return LaunchForward<r::Half, r::RoundedToHalf>(state, cuda_stream);
  }
  return cudaErrorInvalidValue;
}

int LaunchStepPositions(const LearnedScaleState& state, const StepRates& rates, void* stream) {
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
