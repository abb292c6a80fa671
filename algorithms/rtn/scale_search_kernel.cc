// Compiled with -O3 and without contraction into fused multiply-adds, so that the versions for
// different processors give the same bits.
#include "algorithms/rtn/scale_search_kernel.h"

namespace ptq {

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
        sum.value[r] +=
            scale_search::ErrorOf(weights[k].value[r], weight,
                                  {candidate.inverse_scale.value[r], candidate.lowest.value[r],
                                   candidate.highest.value[r]});
      }
    }
    errors[c] = sum;
  }
}

}  // namespace ptq
