// The arithmetic of the scale search on single values, shared by the CPU kernel and the CUDA
// kernel. C++17, no torch. Exact to the last bit on every target under the rules of
// rounding_math.h.
#ifndef PTQ_ALGORITHMS_RTN_SCALE_SEARCH_MATH_H_
#define PTQ_ALGORITHMS_RTN_SCALE_SEARCH_MATH_H_

#include <cstdint>

#include "algorithms/auto_round/rounding_math.h"

namespace ptq::scale_search {

// Errors are added in float32 within a tile of columns, left to right, and in float64 from there
// on: a row's tiles, then the rows of a tile of rows, then the tiles of rows, each in their order.
constexpr int64_t kColumnsPerTile = 256;
constexpr int64_t kRowsPerTile = 16;

// How a candidate is made from a group's extremes: symmetric, s = -extreme / divisor; asymmetric,
// both ends of the range shrunk by factors.
struct CandidateRule {
  float divisor = 0.0f;
  float low_factor = 0.0f;
  float high_factor = 0.0f;
};

struct ScaleAndZero {
  float scale;       // a float16 value
  float zero_point;  // unsigned: 0..2^bits - 1; symmetric: 0
};

// For a group with values in [low, high], low <= 0 <= high.
PTQ_HOST_DEVICE ScaleAndZero ApplyRule(const CandidateRule& rule, float low, float high, int bits,
                                       bool symmetric) {
  if (symmetric) {
    const float extreme = high >= -low ? high : low;
    return ScaleAndZero{rounding::StoredScale(-extreme / rule.divisor), 0.0f};
  }
  const float levels = rounding::RangeOf(bits, false).highest;
  low *= rule.low_factor;
  high *= rule.high_factor;
  const float scale = rounding::StoredScale((high - low) / levels);
  const float zero_point = rounding::Clamp(rounding::RoundHalfEven(-low / scale), 0.0f, levels);
  return ScaleAndZero{scale, zero_point};
}

// Codes are rint(w * inverse_scale) clamped to [lowest, highest], both relative to the zero point.
struct Candidate {
  float inverse_scale;
  float lowest;
  float highest;
};
PTQ_HOST_DEVICE Candidate CandidateOf(ScaleAndZero pair, int bits, bool symmetric) {
  const rounding::CodeRange range = rounding::RangeOf(bits, symmetric);
  return Candidate{1.0f / pair.scale, range.lowest - pair.zero_point,
                   range.highest - pair.zero_point};
}

// importance * (code - w / scale)^2: the weighted squared error over scale^2.
PTQ_HOST_DEVICE float ErrorOf(float weight, float importance, Candidate candidate) {
  const float scaled = weight * candidate.inverse_scale;
#if defined(__CUDA_ARCH__)
  // One instruction each instead of two. Only a NaN would tell the difference, and not in the
  // error.
  const float clamped = fminf(fmaxf(scaled, candidate.lowest), candidate.highest);
#else
  const float clamped = rounding::Clamp(scaled, candidate.lowest, candidate.highest);
#endif
  const float difference = rounding::RoundSmallHalfEven(clamped) - scaled;
  return importance * (difference * difference);
}

// From a sum of ErrorOf to the weighted squared error that candidates are compared by.
PTQ_HOST_DEVICE double TotalError(double sum, float scale) { return sum * scale * scale; }

}  // namespace ptq::scale_search

#endif  // PTQ_ALGORITHMS_RTN_SCALE_SEARCH_MATH_H_
