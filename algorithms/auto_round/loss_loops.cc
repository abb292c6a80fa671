// Built like rounding_loops.cc: vectorised, and every clone gives the same bits.
#include "algorithms/auto_round/loss_loops.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "algorithms/auto_round/rounding_math.h"
#include "algorithms/auto_round/vector_clones.h"

namespace ptq {
namespace {

namespace r = rounding;

template <typename Storage, typename Rounding>
inline __attribute__((always_inline)) void LossOfTokenRange(const TuningState& state, int64_t begin,
                                                            int64_t end) {
  using Word = typename Storage::Word;
  const int64_t width = state.width;
  const int64_t samples = *state.step * state.batch + state.first;
  for (int64_t token = begin; token < end; ++token) {
    const int64_t sample = samples + token / state.length;
    const int64_t position = token % state.length;
    const int64_t target = state.slots[sample] * state.length + position;
    const float mask = state.mask[state.order[sample] * state.length + position];
    const float scale = mask * state.gradient_scale;
    const Word* __restrict outputs = static_cast<const Word*>(state.output) + token * width;
    const Word* __restrict targets = static_cast<const Word*>(state.targets) + target * width;
    Word* __restrict gradients = static_cast<Word*>(state.gradient) + token * width;
    float sums[kLanes] = {};
    for (int64_t first = 0; first < width; first += kPiece) {
      const int64_t piece = std::min(kPiece, width - first);
      float terms[kPiece];
      for (int64_t i = 0; i < piece; ++i) {
        // A masked token's values do not matter, not even if they are not finite.
        const float raw = Storage::Load(outputs[first + i]) - Storage::Load(targets[first + i]);
        const float difference = mask == 0.0f ? 0.0f : raw * mask;
        gradients[first + i] = Storage::Store(Rounding::Round(difference * scale));
        terms[i] = difference * difference;
      }
      std::fill(terms + piece, terms + RoundUpToLanes(piece), 0.0f);
      AddToLanes(terms, piece, sums);
    }
    float sum = 0.0f;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      sum += sums[lane];
    }
    state.token_sums[state.first * state.length + token] = sum;
  }
}

#define PTQ_DEFINE_CLONES(Name, Storage, Rounding)                                          \
  PTQ_VECTOR_CLONES void Loss##Name(const TuningState& state, int64_t begin, int64_t end) { \
    LossOfTokenRange<r::Storage, r::Rounding>(state, begin, end);                           \
  }
PTQ_DEFINE_CLONES(Float32, Float32, Unrounded)
PTQ_DEFINE_CLONES(BFloat16, BFloat16, RoundedToBFloat16)
PTQ_DEFINE_CLONES(Half, Half, RoundedToHalf)
#undef PTQ_DEFINE_CLONES

}  // namespace

void LossOfTokens(const TuningState& state, int64_t begin, int64_t end) {
  switch (state.dtype) {
    case HiddenDtype::kFloat32:
      return LossFloat32(state, begin, end);
    case HiddenDtype::kBFloat16:
      return LossBFloat16(state, begin, end);
    case HiddenDtype::kHalf:
      return LossHalf(state, begin, end);
  }
}

void FinishLoss(const TuningState& state) {
  const int64_t step = *state.step;
  const int64_t* batch = state.order + step * state.batch;
  double sum = 0;
  int64_t unmasked = 0;
  for (int64_t token = 0; token < state.batch * state.length; ++token) {
    sum += state.token_sums[token];
    const int64_t target = batch[token / state.length] * state.length + token % state.length;
    unmasked += state.mask[target] != 0.0f ? 1 : 0;
  }
  const double count = static_cast<double>(unmasked) * static_cast<double>(state.width);
  const float loss =
      unmasked > 0 ? static_cast<float>(sum / count) : std::numeric_limits<float>::quiet_NaN();
  state.loss_curve[step] = loss;
  *state.improved = loss < *state.best_loss ? 1 : 0;  // never if it is not a number
  if (*state.improved != 0) {
    *state.best_loss = loss;
    *state.best_step = step;
  }
}

}  // namespace ptq
