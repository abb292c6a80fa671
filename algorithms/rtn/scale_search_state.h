// What the scale search on a CUDA device reads and writes: raw spans on the device. C++17, no
// torch.
#ifndef PTQ_ALGORITHMS_RTN_SCALE_SEARCH_STATE_H_
#define PTQ_ALGORITHMS_RTN_SCALE_SEARCH_STATE_H_

#include <cstdint>

#include "algorithms/auto_round/weight_layout.h"
#include "algorithms/rtn/scale_search_math.h"

namespace ptq {

// A group is a part of a row, a row, or the whole weight; elements as WeightLayout says.
struct ScaleSearchState : WeightLayout {
  const void* weight = nullptr;                        // [rows, columns]
  const float* importance = nullptr;                   // [columns], normalised
  const scale_search::CandidateRule* rules = nullptr;  // [rule_count], in the order of trial
  uint16_t* scale = nullptr;                           // [groups]: float16 bits
  int32_t* zero_point = nullptr;                       // [groups]: signed storage
  // Used only where the whole weight is one group:
  const float* extremes = nullptr;  // [2]: least and greatest weight
  double* tile_errors = nullptr;    // [row_tiles, rule_count]: scratch
  int64_t rows = 0;
  int64_t columns = 0;
  int rule_count = 0;

  int64_t row_tiles() const {
    return (rows + scale_search::kRowsPerTile - 1) / scale_search::kRowsPerTile;
  }
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_RTN_SCALE_SEARCH_STATE_H_
