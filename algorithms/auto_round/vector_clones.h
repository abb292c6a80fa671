// Helpers of the vectorised host loops: compiled for the baseline and for AVX2, with sums whose
// order does not depend on the vector width.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_VECTOR_CLONES_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_VECTOR_CLONES_H_

#include <cstdint>

// One body, two machine codes; the loader picks.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PTQ_VECTOR_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define PTQ_VECTOR_CLONES
#endif

namespace ptq {

// Element i of a span is added to partial sum i % kLanes, and the partial sums in their order.
constexpr int64_t kLanes = 16;
// Loops work on pieces that stay in the cache: elementwise with everything in vectors, then sums.
constexpr int64_t kPiece = 256;  // elements, a multiple of kLanes

inline __attribute__((always_inline)) int64_t RoundUpToLanes(int64_t count) {
  return (count + kLanes - 1) / kLanes * kLanes;
}

// terms [RoundUpToLanes(count)], with zeros behind `count`.
inline __attribute__((always_inline)) void AddToLanes(const float* terms, int64_t count,
                                                      float* sums) {
  for (int64_t i = 0; i < count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      sums[lane] += terms[i + lane];
    }
  }
}

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_VECTOR_CLONES_H_
