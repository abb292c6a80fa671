// Operands of FP8 products (e4m3, scaled in blocks of 128 along the contraction), in the two
// layouts that Hopper's TN products take, written by the kernel that makes the values. C++17, no
// torch.
#ifndef PTQ_ALGORITHMS_CUDA_FP8_SPANS_H_
#define PTQ_ALGORITHMS_CUDA_FP8_SPANS_H_

#include <cstdint>

#include "algorithms/auto_round/weight_layout.h"
#include "algorithms/cuda/hidden_dtype.h"

namespace ptq {

enum class Fp8Source {
  kValues,         // `values` as they are
  kCodes,          // a weight's codes times their scales (Fp8Codes)
  kGated,          // silu(gate) · up, [rows, columns] from `gate_up`
  kGatedBackward,  // gate_up's gradient, [rows, columns] with columns = 2 width
};

// A matrix [rows, columns], both multiples of 128, worked on in tiles of 128 x 128. Each output may
// be none.
struct Fp8TileSpans {
  Fp8Source source = Fp8Source::kValues;
  const void* values = nullptr;           // [rows, columns]
  Fp8Codes weight;                        // of [rows, columns]
  const void* gate_up = nullptr;          // [rows, 2 width]: gate, then up
  const void* hidden_gradient = nullptr;  // [rows, width]
  void* wide = nullptr;                   // [rows, columns]: the values, rounded to `dtype`
  // Contraction along columns: value = e4m3 · scale of its row's 128 columns.
  uint8_t* by_row = nullptr;      // [rows, columns]
  float* by_row_scale = nullptr;  // [columns / 128, rows]
  // Contraction along rows, transposed. The scale is of a column's 128 rows, or of a whole tile.
  uint8_t* by_column = nullptr;      // [columns, rows]
  float* by_column_scale = nullptr;  // [rows / 128, columns], or [columns / 128, rows / 128]
  bool tile_scales = false;
  int64_t rows = 0;
  int64_t columns = 0;
  HiddenDtype dtype = HiddenDtype::kBFloat16;  // of sources and `wide`
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_CUDA_FP8_SPANS_H_
