// Built like rounding_loops.cc: vectorised, and every clone gives the same bits.
#include "algorithms/auto_round/learned_scale_loops.h"

#include <algorithm>

#include "algorithms/auto_round/learned_scale_math.h"
#include "algorithms/auto_round/vector_clones.h"

namespace ptq {
namespace {

namespace r = rounding;

template <typename Storage, typename Rounding>
inline __attribute__((always_inline)) void FakeQuantizeUnits(const LearnedScaleState& state,
                                                             int64_t first, int64_t last) {
  using Word = typename Storage::Word;
  const r::CodeRange range = r::RangeOf(state.bits, state.symmetric);
  for (int64_t index = first; index < last; ++index) {
    const WeightUnit unit = UnitAt(state, index);
    const float scale = r::LearnedScale(state.start_scale[unit.group], state.factor[unit.group]);
    const float zero_point = state.zero_point[unit.group];
    const int64_t length = unit.length;
    const float* __restrict position = state.position + unit.begin;
    Word* __restrict output = static_cast<Word*>(state.fake_quantized) + unit.begin;
    for (int64_t i = 0; i < length; ++i) {
      const r::Code code = r::ChooseCode(position[i], 0.0f, zero_point, range);
      output[i] = Storage::Store(Rounding::Round(scale * (code.code - zero_point)));
    }
  }
}

template <typename Storage>
inline __attribute__((always_inline)) void StepUnits(const LearnedScaleState& state, int64_t first,
                                                     int64_t last, const StepRates& rates) {
  using Word = typename Storage::Word;
  const r::CodeRange range = r::RangeOf(state.bits, state.symmetric);
  const float rate = rates.value[*rates.step];
  const float first_correction = rates.first_correction[*rates.step];
  const float second_correction = rates.second_correction[*rates.step];
  for (int64_t index = first; index < last; ++index) {
    const WeightUnit unit = UnitAt(state, index);
    const float scale = r::LearnedScale(state.start_scale[unit.group], state.factor[unit.group]);
    const float zero_point = state.zero_point[unit.group];
    const int64_t length = unit.length;
    const Word* __restrict gradient = static_cast<const Word*>(state.gradient) + unit.begin;
    float* __restrict position = state.position + unit.begin;
    uint16_t* __restrict first_moment = state.first_moment + unit.begin;
    uint16_t* __restrict second_moment = state.second_moment + unit.begin;
    float sums[kLanes] = {};
    for (int64_t first_element = 0; first_element < length; first_element += kPiece) {
      const int64_t piece = std::min(kPiece, length - first_element);
      float terms[kPiece];
      for (int64_t i = 0; i < piece; ++i) {
        const int64_t at = first_element + i;
        const float g = Storage::Load(gradient[at]);
        const r::Code code = r::ChooseCode(position[at], 0.0f, zero_point, range);
        const r::AdamUpdate update =
            r::AdamStep((g * scale) * code.inside, r::BFloat16::Load(first_moment[at]),
                        r::BFloat16::Load(second_moment[at]), first_correction, second_correction);
        first_moment[at] = r::BFloat16::Store(r::RoundToBFloat16(update.first));
        second_moment[at] = r::BFloat16::Store(r::RoundToBFloat16(update.second));
        position[at] -= rate * update.direction;
        terms[i] = g * (code.code - zero_point);
      }
      std::fill(terms + piece, terms + RoundUpToLanes(piece), 0.0f);
      AddToLanes(terms, piece, sums);
    }
    float sum = 0.0f;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      sum += sums[lane];
    }
    state.factor_gradient[index] = sum;
  }
}

#define PTQ_DEFINE_CLONES(Name, Storage, Rounding)                                         \
  PTQ_VECTOR_CLONES void FakeQuantize##Name(const LearnedScaleState& state, int64_t begin, \
                                            int64_t end) {                                 \
    FakeQuantizeUnits<r::Storage, r::Rounding>(state, begin, end);                         \
  }
PTQ_DEFINE_CLONES(Float32, Float32, Unrounded)
PTQ_DEFINE_CLONES(Float32RoundedToBFloat16, Float32, RoundedToBFloat16)
PTQ_DEFINE_CLONES(Float32RoundedToHalf, Float32, RoundedToHalf)
PTQ_DEFINE_CLONES(BFloat16, BFloat16, RoundedToBFloat16)
PTQ_DEFINE_CLONES(Half, Half, RoundedToHalf)
#undef PTQ_DEFINE_CLONES

#define PTQ_DEFINE_CLONES(Storage)                                                                 \
  PTQ_VECTOR_CLONES void Step##Storage(const LearnedScaleState& state, int64_t begin, int64_t end, \
                                       const StepRates& rates) {                                   \
    StepUnits<r::Storage>(state, begin, end, rates);                                               \
  }
PTQ_DEFINE_CLONES(Float32)
PTQ_DEFINE_CLONES(BFloat16)
PTQ_DEFINE_CLONES(Half)
#undef PTQ_DEFINE_CLONES

}  // namespace

void FakeQuantizePositions(const LearnedScaleState& state, int64_t begin, int64_t end) {
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

void StepPositions(const LearnedScaleState& state, int64_t begin, int64_t end,
                   const StepRates& rates) {
  switch (state.storage) {
    case WeightStorage::kBFloat16:
      return StepBFloat16(state, begin, end, rates);
    case WeightStorage::kHalf:
      return StepHalf(state, begin, end, rates);
    default:
      return StepFloat32(state, begin, end, rates);
  }
}

void StepFactors(const LearnedScaleState& state, int64_t begin, int64_t end,
                 const StepRates& rates) {
  const int64_t per_group = state.units_per_group();
  for (int64_t group = begin; group < end; ++group) {
    float gradient = 0.0f;
    for (int64_t unit = group * per_group; unit < (group + 1) * per_group; ++unit) {
      gradient += state.factor_gradient[unit];
    }
    const r::AdamUpdate update =
        r::AdamStep(gradient * state.start_scale[group], state.factor_first_moment[group],
                    state.factor_second_moment[group], rates.first_correction[*rates.step],
                    rates.second_correction[*rates.step]);
    state.factor_first_moment[group] = update.first;
    state.factor_second_moment[group] = update.second;
    state.factor[group] -= rates.range[*rates.step] * update.direction;
  }
}

}  // namespace ptq
