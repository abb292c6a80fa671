// Built with -O3 -ffp-contract=off (algorithms/CMakeLists.txt): loops are vectorised, and every
// clone gives the same bits.
#include "algorithms/auto_round/rounding_loops.h"

#include <algorithm>

#include "algorithms/auto_round/rounding_math.h"
#include "algorithms/auto_round/vector_clones.h"

namespace ptq {
namespace {

namespace r = rounding;

template <typename Storage, typename Rounding>
inline __attribute__((always_inline)) void FakeQuantizeUnits(const RoundingState& state,
                                                             int64_t first, int64_t last) {
  using Word = typename Storage::Word;
  const r::CodeRange range = r::RangeOf(state.bits, state.symmetric);
  for (int64_t index = first; index < last; ++index) {
    const WeightUnit unit = UnitAt(state, index);
    const float scale = state.scale[unit.group];
    const float zero_point = state.zero_point[unit.group];
    const int64_t length = unit.length;
    const Word* __restrict weight = static_cast<const Word*>(state.weight) + unit.begin;
    const float* __restrict value = state.value + unit.begin;
    Word* __restrict output = static_cast<Word*>(state.fake_quantized) + unit.begin;
    for (int64_t i = 0; i < length; ++i) {
      const r::Code code =
          r::ChooseCode(Storage::Load(weight[i]) / scale, value[i], zero_point, range);
      output[i] = Storage::Store(Rounding::Round(scale * (code.code - zero_point)));
    }
  }
}

template <typename Storage>
inline __attribute__((always_inline)) void KeepUnits(const RoundingState& state, int64_t first,
                                                     int64_t last) {
  using Word = typename Storage::Word;
  const r::CodeRange range = r::RangeOf(state.bits, state.symmetric);
  const int offset = state.symmetric ? 0 : 1 << (state.bits - 1);
  for (int64_t index = first; index < last; ++index) {
    const WeightUnit unit = UnitAt(state, index);
    const float scale = state.scale[unit.group];
    const float zero_point = state.zero_point[unit.group];
    const int64_t length = unit.length;
    const Word* __restrict weight = static_cast<const Word*>(state.weight) + unit.begin;
    const float* __restrict value = state.value + unit.begin;
    int8_t* __restrict codes = state.best_codes + unit.begin;
    for (int64_t i = 0; i < length; ++i) {
      const r::Code code =
          r::ChooseCode(Storage::Load(weight[i]) / scale, value[i], zero_point, range);
      codes[i] = static_cast<int8_t>(static_cast<int>(code.code) - offset);
    }
  }
}

template <typename Storage>
inline __attribute__((always_inline)) void StepUnits(const RoundingState& state, int64_t first,
                                                     int64_t last, float learning_rate) {
  using Word = typename Storage::Word;
  const r::CodeRange range = r::RangeOf(state.bits, state.symmetric);
  for (int64_t index = first; index < last; ++index) {
    const WeightUnit unit = UnitAt(state, index);
    const float scale = state.scale[unit.group];
    const float zero_point = state.zero_point[unit.group];
    const float step = scale < 0.0f ? -learning_rate : learning_rate;
    const int64_t length = unit.length;
    const Word* __restrict weight = static_cast<const Word*>(state.weight) + unit.begin;
    const Word* __restrict gradient = static_cast<const Word*>(state.gradient) + unit.begin;
    float* __restrict value = state.value + unit.begin;
    float scale_sums[kLanes] = {};
    float clamped_sums[kLanes] = {};
    for (int64_t first_element = 0; first_element < length; first_element += kPiece) {
      const int64_t piece = std::min(kPiece, length - first_element);
      float scale_terms[kPiece];
      float clamped_terms[kPiece];
      for (int64_t i = 0; i < piece; ++i) {
        const int64_t at = first_element + i;
        const float g = Storage::Load(gradient[at]);
        const float ratio = Storage::Load(weight[at]) / scale;
        const r::Code code = r::ChooseCode(ratio, value[at], zero_point, range);
        value[at] -= step * (code.inside * r::Sign(g));
        scale_terms[i] = g * ((code.code - zero_point) - code.inside * ratio);
        clamped_terms[i] = g * (1.0f - code.inside);
      }
      std::fill(scale_terms + piece, scale_terms + RoundUpToLanes(piece), 0.0f);
      std::fill(clamped_terms + piece, clamped_terms + RoundUpToLanes(piece), 0.0f);
      AddToLanes(scale_terms, piece, scale_sums);
      AddToLanes(clamped_terms, piece, clamped_sums);
    }
    float scale_gradient = 0.0f;
    float clamped_gradient = 0.0f;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      scale_gradient += scale_sums[lane];
      clamped_gradient += clamped_sums[lane];
    }
    state.scale_gradient[index] = scale_gradient;
    state.clamped_gradient[index] = clamped_gradient;
  }
}

#define PTQ_DEFINE_CLONES(Name, Storage, Rounding)                                     \
  PTQ_VECTOR_CLONES void FakeQuantize##Name(const RoundingState& state, int64_t begin, \
                                            int64_t end) {                             \
    FakeQuantizeUnits<r::Storage, r::Rounding>(state, begin, end);                     \
  }
PTQ_DEFINE_CLONES(Float32, Float32, Unrounded)
PTQ_DEFINE_CLONES(Float32RoundedToBFloat16, Float32, RoundedToBFloat16)
PTQ_DEFINE_CLONES(Float32RoundedToHalf, Float32, RoundedToHalf)
PTQ_DEFINE_CLONES(BFloat16, BFloat16, RoundedToBFloat16)
PTQ_DEFINE_CLONES(Half, Half, RoundedToHalf)
#undef PTQ_DEFINE_CLONES

#define PTQ_DEFINE_CLONES(Storage)                                                               \
  PTQ_VECTOR_CLONES void Keep##Storage(const RoundingState& state, int64_t begin, int64_t end) { \
    KeepUnits<r::Storage>(state, begin, end);                                                    \
  }                                                                                              \
  PTQ_VECTOR_CLONES void Step##Storage(const RoundingState& state, int64_t begin, int64_t end,   \
                                       float learning_rate) {                                    \
    StepUnits<r::Storage>(state, begin, end, learning_rate);                                     \
  }
PTQ_DEFINE_CLONES(Float32)
PTQ_DEFINE_CLONES(BFloat16)
PTQ_DEFINE_CLONES(Half)
#undef PTQ_DEFINE_CLONES

r::GroupParameters ParametersOf(const RoundingState& state, int64_t group) {
  return r::ChooseGroupParameters(state.minimum[group], state.maximum[group], state.alpha[group],
                                  state.beta[group], state.bits, state.symmetric);
}

}  // namespace

void ChooseScales(const RoundingState& state, int64_t begin, int64_t end) {
  for (int64_t group = begin; group < end; ++group) {
    const r::GroupParameters parameters = ParametersOf(state, group);
    state.scale[group] = parameters.scale;
    state.zero_point[group] = parameters.zero_point;
  }
}

void FakeQuantize(const RoundingState& state, int64_t begin, int64_t end) {
  switch (state.storage) {
    case WeightStorage::kFloat32:
      return FakeQuantizeFloat32(state, begin, end);
    case WeightStorage::kFloat32RoundedToBFloat16:
      return FakeQuantizeFloat32RoundedToBFloat16(state, begin, end);
    case WeightStorage::kFloat32RoundedToHalf:
      return FakeQuantizeFloat32RoundedToHalf(state, begin, end);
    case WeightStorage::kBFloat16:
      return FakeQuantizeBFloat16(state, begin, end);
    case WeightStorage::kHalf:
      return FakeQuantizeHalf(state, begin, end);
  }
}

void KeepCodes(const RoundingState& state, int64_t begin, int64_t end) {
  switch (state.storage) {
    case WeightStorage::kBFloat16:
      return KeepBFloat16(state, begin, end);
    case WeightStorage::kHalf:
      return KeepHalf(state, begin, end);
    default:
      return KeepFloat32(state, begin, end);
  }
}

void KeepScales(const RoundingState& state, int64_t begin, int64_t end) {
  std::copy(state.scale + begin, state.scale + end, state.best_scale + begin);
  std::copy(state.zero_point + begin, state.zero_point + end, state.best_zero_point + begin);
}

void StepValues(const RoundingState& state, int64_t begin, int64_t end, float learning_rate) {
  switch (state.storage) {
    case WeightStorage::kBFloat16:
      return StepBFloat16(state, begin, end, learning_rate);
    case WeightStorage::kHalf:
      return StepHalf(state, begin, end, learning_rate);
    default:
      return StepFloat32(state, begin, end, learning_rate);
  }
}

void StepRanges(const RoundingState& state, int64_t begin, int64_t end, float learning_rate) {
  const int64_t per_group = state.units_per_group();
  for (int64_t group = begin; group < end; ++group) {
    r::GroupGradient gradient{0.0f, 0.0f};
    for (int64_t unit = group * per_group; unit < (group + 1) * per_group; ++unit) {
      gradient.scale += state.scale_gradient[unit];
      gradient.clamped += state.clamped_gradient[unit];
    }
    const r::RangeFactors factors = r::StepRange(
        {state.alpha[group], state.beta[group]}, state.minimum[group], state.maximum[group],
        gradient, ParametersOf(state, group), state.bits, state.symmetric, learning_rate);
    state.alpha[group] = factors.alpha;
    state.beta[group] = factors.beta;
  }
}

}  // namespace ptq
