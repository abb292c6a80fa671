// The inner loop of the scale search on a CPU, free of torch so that it compiles with its own
// flags.
#ifndef PTQ_ALGORITHMS_RTN_SCALE_SEARCH_KERNEL_H_
#define PTQ_ALGORITHMS_RTN_SCALE_SEARCH_KERNEL_H_

#include <cstdint>

#include "algorithms/rtn/scale_search_math.h"

namespace ptq {

// Rows that are searched side by side, one per SIMD lane: sums run down the columns of each row in
// order, so that results depend neither on the vector width nor on the number of threads.
inline constexpr int kSearchLanes = static_cast<int>(scale_search::kRowsPerTile);

// One value per row.
struct alignas(64) SearchLanes {
  float value[kSearchLanes];
};

// A scale_search::Candidate for each of the rows.
struct SearchCandidate {
  SearchLanes inverse_scale;
  SearchLanes lowest;
  SearchLanes highest;
};

// For every candidate c and row r: errors[c][r] = sum over columns of scale_search::ErrorOf.
// `weights` [columns] lanes, `importance` [columns].
void AccumulateSearchErrors(const SearchLanes* weights, const float* importance, int64_t columns,
                            const SearchCandidate* candidates, int64_t candidate_count,
                            SearchLanes* errors);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_RTN_SCALE_SEARCH_KERNEL_H_
