// Products of e4m3 values with scales by blocks of 128 along the contraction, on Hopper.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_FP8_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_FP8_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "algorithms/cuda/fp8_spans.h"

namespace ptq {

// One side of a product, [n, k] with the contraction last. Undefined: not made.
struct Fp8Operand {
  at::Tensor values;  // [n, k] float8_e4m3fn
  // float32: [n, k / 128], n contiguous, or of whole tiles, [n / 128, k / 128] contiguous.
  at::Tensor scale;

  bool defined() const { return values.defined(); }
};

// Whether the current device has these products: compute capability 9.0, CUDA loaded.
bool HasFp8Products();

// Whether a [m, k] times [n, k]ᵀ can be one, and whether the second operand may have tile scales,
// which are faster.
bool IsFp8Product(int64_t m, int64_t n, int64_t k);
bool TakesTileScales(int64_t k);

// a · bᵀ in bfloat16 [m, n], summed in float32 throughout. Only b may have tile scales.
at::Tensor Fp8Product(const Fp8Operand& a, const Fp8Operand& b);

// A matrix in the layouts of the products that it enters.
struct Fp8Layouts {
  at::Tensor wide;     // [rows, columns] bfloat16
  Fp8Operand rows;     // contraction over columns
  Fp8Operand columns;  // transposed: contraction over rows
};
struct Fp8Wanted {
  bool wide = false;
  bool rows = false;
  bool columns = false;
  bool tile_scales = false;  // of `columns`
};
// By one kernel, from `spans`' source. `like` gives the device.
Fp8Layouts MakeFp8Layouts(Fp8TileSpans spans, const Fp8Wanted& wanted, const at::Tensor& like);
// From `values` [rows, columns], bfloat16 and contiguous where FP8 is wanted; `wide` is `values`
// itself.
Fp8Layouts MakeFp8Layouts(const at::Tensor& values, const Fp8Wanted& wanted);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_FP8_H_
