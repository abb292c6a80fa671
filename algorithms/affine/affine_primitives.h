// torchao's affine quantization primitives, with its names and semantics (torchao 0.18,
// quant_primitives.py).
#ifndef PTQ_ALGORITHMS_AFFINE_AFFINE_PRIMITIVES_H_
#define PTQ_ALGORITHMS_AFFINE_AFFINE_PRIMITIVES_H_

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>

#include "algorithms/affine/affine_quantized_tensor.h"

namespace ptq {

// Of one weight [N, K] in blocks of {b0, b1}: both [N/b0, K/b1].
struct QParams {
  at::Tensor scale;
  at::Tensor zero_point;
};

struct ChooseQParamsOptions {
  MappingType mapping_type = MappingType::kSymmetric;
  int64_t quant_min = -8;
  int64_t quant_max = 7;
  std::optional<double> eps;                  // default: smallest normal of the input's dtype
  std::optional<at::ScalarType> scale_dtype;  // default: the input's dtype
  at::ScalarType zero_point_dtype = at::kInt;
  bool preserve_zero = true;
  ZeroPointDomain zero_point_domain = ZeroPointDomain::kInt;
};

// Arithmetic in the input's dtype, as torchao's (a bf16 weight gives a bf16 scale); keepdim shapes.
QParams ChooseQParamsAffine(const at::Tensor& input, std::array<int64_t, 2> block_size,
                            const ChooseQParamsOptions& options);
// clamp(round_half_even(x * (1/scale)) + zero_point, quant_min, quant_max): by the reciprocal.
// int8; uint8 where quant_max does not fit.
at::Tensor QuantizeAffine(const at::Tensor& input, std::array<int64_t, 2> block_size,
                          const QParams& qparams, int64_t quant_min, int64_t quant_max,
                          ZeroPointDomain domain = ZeroPointDomain::kInt);
at::Tensor DequantizeAffine(const at::Tensor& codes, std::array<int64_t, 2> block_size,
                            const QParams& qparams, int64_t quant_min, int64_t quant_max,
                            at::ScalarType output_dtype,
                            ZeroPointDomain domain = ZeroPointDomain::kInt);
at::Tensor FakeQuantizeAffine(const at::Tensor& input, std::array<int64_t, 2> block_size,
                              const QParams& qparams, int64_t quant_min, int64_t quant_max);

// {1, g}, {1, K} or {N, K} for a weight of [N, K].
std::array<int64_t, 2> BlockSizeOf(const QuantizationScheme& scheme, int64_t rows, int64_t columns);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AFFINE_AFFINE_PRIMITIVES_H_
