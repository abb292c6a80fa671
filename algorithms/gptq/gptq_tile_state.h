// What the solver of a tile of columns on a CUDA device reads and writes: raw spans on the device.
// C++17, no torch.
#ifndef PTQ_ALGORITHMS_GPTQ_GPTQ_TILE_STATE_H_
#define PTQ_ALGORITHMS_GPTQ_GPTQ_TILE_STATE_H_

#include <cstdint>

namespace ptq {

// Columns are by position in the order of rounding, each contiguous over the weight's rows.
struct GptqTileState {
  static constexpr int kMaxColumns = 128;

  const float* weight = nullptr;    // [columns, rows]: what earlier tiles left of it
  const float* feedback = nullptr;  // of column i to column j > i: feedback[i · stride + j]
  int64_t feedback_stride = 0;
  const int64_t* groups = nullptr;    // [columns]: row of `scale`
  const float* scale = nullptr;       // [groups, rows]
  const float* zero_point = nullptr;  // likewise, signed storage; nullptr: 0 everywhere
  int8_t* codes = nullptr;            // [columns, rows]
  float* errors = nullptr;            // [columns, rows]
  int32_t* failed = nullptr;          // [1]: set to 1 if an error is not finite, else untouched
  int64_t rows = 0;
  int columns = 0;  // at most kMaxColumns
  int quant_min = 0;
  int quant_max = 0;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_GPTQ_GPTQ_TILE_STATE_H_
