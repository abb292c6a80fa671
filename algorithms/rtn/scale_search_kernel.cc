// Compiled with -O3 and without contraction into fused multiply-adds, so that the versions for
// different processors give the same bits.
#include "algorithms/rtn/scale_search_kernel.h"

namespace ptq {
namespace {

// Adding and subtracting 1.5 * 2^23 rounds |x| < 2^22 to an integer, half to even, on processors
// without a rounding instruction too.
constexpr float kRoundingShift = 12582912.0f;

}  // namespace

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
__attribute__((target_clones("default", "avx2", "avx512f")))
#endif
void AccumulateSearchErrors(const SearchLanes* weights, const float* importance, int64_t columns,
                            const SearchCandidate* candidates, int64_t candidate_count,
                            SearchLanes* errors) {
  for (int64_t c = 0; c < candidate_count; ++c) {
    const SearchCandidate candidate = candidates[c];
    SearchLanes sum = {};
    for (int64_t k = 0; k < columns; ++k) {
      const float weight = importance[k];
      for (int r = 0; r < kSearchLanes; ++r) {
        const float scaled = weights[k].value[r] * candidate.inverse_scale.value[r];
        float code = scaled;
        code = code < candidate.lowest.value[r] ? candidate.lowest.value[r] : code;
        code = code > candidate.highest.value[r] ? candidate.highest.value[r] : code;
        code = (code + kRoundingShift) - kRoundingShift;
        const float difference = code - scaled;
        sum.value[r] += weight * (difference * difference);
      }
    }
    errors[c] = sum;
  }
}

}  // namespace ptq
