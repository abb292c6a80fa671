// Compiled with -O3 and without contraction into fused multiply-adds, so that the versions for
// different processors give the same bits.
#include "algorithms/rtn/k_quant_kernel.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "algorithms/auto_round/rounding_math.h"

namespace ptq {
namespace {

using rounding::Clamp;
using rounding::RoundSmallHalfEven;
using rounding::RoundToHalf;

constexpr int kMaxGroups = kSuperBlock / 16;
// How the two ends of a group's range are scaled before the fit, and a symmetric group's extreme.
constexpr float kEnds[] = {1.0f, 0.92f, 0.82f, 1.05f};
constexpr float kSymmetricEnds[] = {1.0f,  0.97f, 1.03f, 0.94f, 1.06f, 0.91f, 1.1f,
                                    0.87f, 0.82f, 1.15f, 0.77f, 0.7f,  0.62f};
// Multiples of the super-block's scale for the largest group's; of the minimum's likewise.
constexpr float kStarts[] = {1.0f, 0.95f, 1.06f};
constexpr int kRounds = 4;

// value = scale * code - minimum, code within [lowest, highest].
struct Line {
  float scale = 0.0f;
  float minimum = 0.0f;
};
struct Codes {
  float lowest;
  float highest;
};

float Inverse(float scale) { return scale == 0.0f ? 0.0f : 1.0f / scale; }

float CodeOf(float weight, Line line, float inverse, Codes codes) {
  return RoundSmallHalfEven(Clamp((weight + line.minimum) * inverse, codes.lowest, codes.highest));
}

// In an order that any vector width keeps.
template <int kSize>
float Sum(float (&terms)[kSize]) {
  for (int half = kSize / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) terms[i] += terms[i + half];
  }
  return terms[0];
}

template <int kGroup>
float ErrorOf(const float* weights, const float* importance, Line line, Codes codes) {
  const float inverse = Inverse(line.scale);
  float terms[kGroup];
  for (int i = 0; i < kGroup; ++i) {
    const float code = CodeOf(weights[i], line, inverse, codes);
    const float error = code * line.scale - line.minimum - weights[i];
    terms[i] = importance[i] * (error * error);
  }
  return Sum(terms);
}

// Sums of importance times powers of the codes that `line` gives, and of the weights.
struct Moments {
  float codes_squared;
  float codes;
  float codes_weights;
};
template <int kGroup>
Moments MomentsOf(const float* weights, const float* importance, Line line, Codes codes) {
  const float inverse = Inverse(line.scale);
  float squared[kGroup];
  float plain[kGroup];
  float products[kGroup];
  for (int i = 0; i < kGroup; ++i) {
    const float code = CodeOf(weights[i], line, inverse, codes);
    plain[i] = importance[i] * code;
    squared[i] = plain[i] * code;
    products[i] = plain[i] * weights[i];
  }
  return {Sum(squared), Sum(plain), Sum(products)};
}

// One group and what the fits of all lines through it share.
template <int kGroup>
struct Group {
  const float* weights;
  const float* importance;
  Codes codes;
  bool symmetric;
  float sum_importance = 0.0f;
  float sum_weights = 0.0f;  // times importance

  void Prepare() {
    float terms[kGroup];
    for (int i = 0; i < kGroup; ++i) terms[i] = importance[i];
    sum_importance = Sum(terms);
    for (int i = 0; i < kGroup; ++i) terms[i] = importance[i] * weights[i];
    sum_weights = Sum(terms);
  }

  float Error(Line line) const { return ErrorOf<kGroup>(weights, importance, line, codes); }

  // The least-squares line for the codes that `line` gives; its minimum is not negative.
  Line Fit(Line line) const {
    const Moments m = MomentsOf<kGroup>(weights, importance, line, codes);
    if (!(m.codes_squared > 0.0f)) return line;
    const Line through_zero = {m.codes_weights / m.codes_squared, 0.0f};
    if (symmetric) return through_zero.scale == 0.0f ? line : through_zero;
    const float determinant = sum_importance * m.codes_squared - m.codes * m.codes;
    if (!(determinant > 0.0f)) return line;
    Line fit = {(sum_importance * m.codes_weights - m.codes * sum_weights) / determinant,
                (m.codes * m.codes_weights - m.codes_squared * sum_weights) / determinant};
    if (!(fit.minimum >= 0.0f)) fit = through_zero;
    return fit.scale > 0.0f ? fit : line;
  }

  // Moves `best` and its `error` to a better line near `start`, if there is one.
  void Try(Line start, Line& best, float& error) const {
    const Line fit = Fit(start);
    const float fit_error = Error(fit);
    if (fit_error < error) {
      best = fit;
      error = fit_error;
    }
  }

  Line Search() const {
    float low = 0.0f;
    float high = 0.0f;
    for (int i = 0; i < kGroup; ++i) {
      low = std::min(low, weights[i]);
      high = std::max(high, weights[i]);
    }
    Line best;
    float error = Error(best);
    if (low == 0.0f && high == 0.0f) return best;
    if (symmetric) {
      const float extreme = high >= -low ? high : low;
      for (const float end : kSymmetricEnds) {
        Try({extreme * end / codes.lowest, 0.0f}, best, error);
      }
      // The other sign: the extreme on the highest code, which is nearer to 0.
      for (const float end : kSymmetricEnds) {
        Try({extreme * end / codes.highest, 0.0f}, best, error);
      }
    } else {
      for (const float low_end : kEnds) {
        for (const float high_end : kEnds) {
          if (low == 0.0f && low_end != 1.0f) continue;
          const float minimum = -low * low_end;
          Try({(high * high_end + minimum) / codes.highest, minimum}, best, error);
        }
      }
    }
    for (int round = 0; round < 2; ++round) Try(best, best, error);
    return best;
  }
};

// A super-block while it is searched.
template <int kGroup>
class SuperBlockSearch {
 public:
  static constexpr int kGroups = kSuperBlock / kGroup;

  SuperBlockSearch(KQuant type, const float* weights, const float* importance)
      : traits_(TraitsOf(type)) {
    const auto half = static_cast<float>(1 << (traits_.bits - 1));
    const Codes codes =
        traits_.symmetric ? Codes{-half, half - 1.0f} : Codes{0.0f, 2 * half - 1.0f};
    for (int g = 0; g < kGroups; ++g) {
      groups_[g] = {weights + g * kGroup, importance + g * kGroup, codes, traits_.symmetric};
      groups_[g].Prepare();
      lines_[g] = groups_[g].Search();
    }
  }

  void Run(KQuantSuperBlock* result) {
    float best = 0.0f;
    bool any = false;
    for (const float start : kStarts) {
      State state = StateFor(start);
      float error = Improve(state, 2);
      for (int round = 0; round < kRounds; ++round) {
        State next = state;
        if (!Refit(next)) break;
        const float next_error = Improve(next, 1);
        if (!(next_error < error)) break;
        state = next;
        error = next_error;
      }
      if (!any || error < best) {
        any = true;
        best = error;
        best_ = state;
      }
    }
    Write(result);
  }

 private:
  struct State {
    float scale = 0.0f;
    float minimum = 0.0f;
    int sub_scale[kGroups];
    int sub_minimum[kGroups];
  };

  int Limited(float value) const {
    return static_cast<int>(
        RoundSmallHalfEven(Clamp(value, static_cast<float>(traits_.lowest_scale),
                                 static_cast<float>(traits_.highest_scale))));
  }
  static Line LineOf(const State& state, int sub_scale, int sub_minimum) {
    return {state.scale * static_cast<float>(sub_scale),
            state.minimum * static_cast<float>(sub_minimum)};
  }

  // The largest scale on the outermost integer, times `start`; the same of the minima.
  State StateFor(float start) const {
    float extreme = 0.0f;
    float minimum = 0.0f;
    for (const Line& line : lines_) {
      if (std::fabs(line.scale) > std::fabs(extreme)) extreme = line.scale;
      minimum = std::max(minimum, line.minimum);
    }
    State state;
    const auto outermost =
        static_cast<float>(traits_.symmetric ? traits_.lowest_scale : traits_.highest_scale);
    state.scale = RoundToHalf(extreme * start / outermost);
    state.minimum = RoundToHalf(minimum * start / outermost);
    for (int g = 0; g < kGroups; ++g) {
      state.sub_scale[g] = Limited(lines_[g].scale * Inverse(state.scale));
      state.sub_minimum[g] = Limited(lines_[g].minimum * Inverse(state.minimum));
    }
    return state;
  }

  // Moves each group's integers to the best ones within `reach`, and returns the error of all.
  float Improve(State& state, int reach) const {
    float total = 0.0f;
    for (int g = 0; g < kGroups; ++g) {
      const Group<kGroup>& group = groups_[g];
      const int scale = state.sub_scale[g];
      const int minimum = state.sub_minimum[g];
      const int minimum_reach = traits_.symmetric || state.minimum == 0.0f ? 0 : reach;
      float error = group.Error(LineOf(state, scale, minimum));
      for (int s = std::max(scale - reach, traits_.lowest_scale);
           s <= std::min(scale + reach, traits_.highest_scale); ++s) {
        for (int m = std::max(minimum - minimum_reach, 0);
             m <= std::min(minimum + minimum_reach, traits_.highest_scale); ++m) {
          const float candidate = group.Error(LineOf(state, s, m));
          if (!(candidate < error)) continue;
          error = candidate;
          state.sub_scale[g] = s;
          state.sub_minimum[g] = m;
        }
      }
      total += error;
    }
    return total;
  }

  // The least-squares scale and minimum for the state's integers and codes; false if they stay.
  bool Refit(State& state) const {
    float scale_scale = 0.0f;  // sums over the super-block of importance times
    float scale_minimum = 0.0f;
    float minimum_minimum = 0.0f;
    float scale_weight = 0.0f;
    float minimum_weight = 0.0f;
    for (int g = 0; g < kGroups; ++g) {
      const auto sc = static_cast<float>(state.sub_scale[g]);
      const auto m = static_cast<float>(state.sub_minimum[g]);
      const Group<kGroup>& group = groups_[g];
      const Moments moments =
          MomentsOf<kGroup>(group.weights, group.importance,
                            LineOf(state, state.sub_scale[g], state.sub_minimum[g]), group.codes);
      scale_scale += sc * sc * moments.codes_squared;
      scale_minimum += sc * m * moments.codes;
      minimum_minimum += m * m * group.sum_importance;
      scale_weight += sc * moments.codes_weights;
      minimum_weight += m * group.sum_weights;
    }
    float scale = state.scale;
    float minimum = state.minimum;
    const float determinant = scale_scale * minimum_minimum - scale_minimum * scale_minimum;
    if (minimum_minimum > 0.0f && determinant > 0.0f) {
      scale = (minimum_minimum * scale_weight - scale_minimum * minimum_weight) / determinant;
      minimum = (scale_minimum * scale_weight - scale_scale * minimum_weight) / determinant;
    } else if (scale_scale > 0.0f) {
      scale = scale_weight / scale_scale;
    }
    scale = RoundToHalf(scale);
    minimum = RoundToHalf(minimum);
    if (!traits_.symmetric && (!(scale > 0.0f) || !(minimum >= 0.0f))) return false;
    if (scale == state.scale && minimum == state.minimum) return false;
    state.scale = scale;
    state.minimum = minimum;
    return true;
  }

  void Write(KQuantSuperBlock* result) const {
    std::memset(result, 0, sizeof(*result));
    result->scale = best_.scale;
    result->minimum = best_.minimum;
    const float offset = traits_.symmetric ? 0.0f : static_cast<float>(1 << (traits_.bits - 1));
    for (int g = 0; g < kGroups; ++g) {
      const Group<kGroup>& group = groups_[g];
      result->sub_scale[g] = static_cast<int8_t>(best_.sub_scale[g]);
      result->sub_minimum[g] = static_cast<int8_t>(best_.sub_minimum[g]);
      const Line line = LineOf(best_, best_.sub_scale[g], best_.sub_minimum[g]);
      const float inverse = Inverse(line.scale);
      for (int i = 0; i < kGroup; ++i) {
        result->codes[g * kGroup + i] =
            static_cast<int8_t>(CodeOf(group.weights[i], line, inverse, group.codes) - offset);
      }
    }
  }

  const KQuantTraits traits_;
  Group<kGroup> groups_[kGroups];
  Line lines_[kGroups];
  State best_;
};

}  // namespace

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
__attribute__((flatten, target_clones("default", "avx2", "avx512f")))
#endif
void SearchKQuant(KQuant type, const float* weights, const float* importance,
                  KQuantSuperBlock* result) {
  if (TraitsOf(type).group_size == 16) {
    SuperBlockSearch<16>(type, weights, importance).Run(result);
  } else {
    SuperBlockSearch<32>(type, weights, importance).Run(result);
  }
}

}  // namespace ptq
