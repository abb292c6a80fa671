// One affine-quantized weight, unpacked: the canonical record from which every output format
// derives. Word and fields are torchao's; ours is a plain value without layout or
// dispatch.
#ifndef PTQ_ALGORITHMS_AFFINE_AFFINE_QUANTIZED_TENSOR_H_
#define PTQ_ALGORITHMS_AFFINE_AFFINE_QUANTIZED_TENSOR_H_

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <vector>

#include "common/quantization_scheme.h"

namespace ptq {

enum class MappingType { kSymmetric, kSymmetricNoClippingErr, kAsymmetric };
enum class ZeroPointDomain { kInt, kFloat, kNone };

// The scales of a K-quant's weight [N, K] in super-blocks of 256 columns and groups of g
// (common/k_quant.h). Its value, exact in float32 but for the subtraction:
//   symmetric: (scale * sub_scale) * int_data
//   otherwise: (scale * sub_scale) * (int_data + 2^(bits-1)) - minimum * sub_minimum
struct SuperBlockScales {
  at::Tensor scale;        // [N, K/256] float16: ggml's d; may be 0, as everything here
  at::Tensor minimum;      // likewise: dmin; undefined where symmetric
  at::Tensor sub_scale;    // [N, K/g] int8
  at::Tensor sub_minimum;  // likewise; undefined where symmetric
};

// value[n, k] = (int_data[n, k] - zero_point[n/b0, k/b1]) * scale[n/b0, k/b1]
//
// Storage is signed: an unsigned code u of b bits is int_data = u - 2^(b-1), and so is the zero
// point.
struct AffineQuantizedTensor {
  at::Tensor int_data;  // [N, K] int8, each in [quant_min, quant_max]
  at::Tensor scale;  // [N/b0, K/b1], float16 (kTorchao: weight's dtype); may be negative, never 0
  at::Tensor zero_point;                // as scale, int32; all 0 when symmetric
  std::array<int64_t, 2> block_size{};  // {1, g} group, {1, K} channel, {N, K} tensor
  int64_t quant_min = 0;
  int64_t quant_max = 0;
  ZeroPointDomain zero_point_domain = ZeroPointDomain::kInt;
  MappingType mapping_type = MappingType::kSymmetric;
  int bits = 0;
  at::ScalarType original_dtype = at::kFloat;  // of the weight; what Dequantize returns by default
  // Of a K-quant, whose values SuperBlockScales defines: block_size is {1, g}, and scale and
  // zero_point are undefined.
  KQuant k_quant = KQuant::kNone;
  SuperBlockScales super_blocks;
};

// The tensors that `tensor` consists of: those that are defined.
std::vector<at::Tensor*> TensorsOf(AffineQuantizedTensor& tensor);

// Of a K-quant, by group, [N, K/g] float32: what a code is multiplied by, and what is taken from
// the product (undefined where symmetric).
struct GroupValues {
  at::Tensor scale;
  at::Tensor minimum;
};
GroupValues GroupValuesOf(const SuperBlockScales& scales);

// Decodes in float32 and rounds once to `dtype`: what a loader computes. [N, K].
at::Tensor Dequantize(const AffineQuantizedTensor& tensor, at::ScalarType dtype);
at::Tensor Dequantize(const AffineQuantizedTensor& tensor);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AFFINE_AFFINE_QUANTIZED_TENSOR_H_
