#include "algorithms/auto_round/weight_tensor.h"

#include <c10/util/Exception.h>

#include "algorithms/affine/affine_primitives.h"

namespace ptq {
namespace {

WeightStorage StorageOf(at::ScalarType compute_dtype, at::ScalarType stored_dtype) {
  switch (compute_dtype) {
    case at::kBFloat16:
      return WeightStorage::kBFloat16;
    case at::kHalf:
      return WeightStorage::kHalf;
    case at::kFloat:
      return stored_dtype == at::kBFloat16 ? WeightStorage::kFloat32RoundedToBFloat16
             : stored_dtype == at::kHalf   ? WeightStorage::kFloat32RoundedToHalf
                                           : WeightStorage::kFloat32;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(
          false, "Auto-Round tunes float32, bfloat16 and float16 weights, not ", compute_dtype);
  }
}

}  // namespace

WeightLayout LayoutOf(const at::Tensor& weight, at::ScalarType stored_dtype,
                      const QuantizationScheme& scheme) {
  const auto [b0, b1] = BlockSizeOf(scheme, weight.size(0), weight.size(1));
  WeightLayout layout;
  layout.group_size = b0 * b1;
  layout.groups = weight.numel() / layout.group_size;
  layout.bits = scheme.bits;
  layout.symmetric = scheme.symmetric;
  layout.storage = StorageOf(weight.scalar_type(), stored_dtype);
  return layout;
}

void CheckLikeWeight(const at::Tensor& tensor, at::IntArrayRef sizes,
                     const at::TensorOptions& options) {
  TORCH_CHECK(
      tensor.is_contiguous() && tensor.sizes() == sizes && tensor.dtype() == options.dtype(),
      "the fake-quantized weight and its gradient must be like the weight and contiguous");
}

void PointTo(const DecodedWeight& output, at::IntArrayRef sizes, const at::TensorOptions& options,
             void*& fake_quantized, Fp8Codes& fp8) {
  fp8 = {};
  if (output.weight.defined()) {
    CheckLikeWeight(output.weight, sizes, options);
    fake_quantized = output.weight.data_ptr();
    return;
  }
  const at::Tensor& scale = output.scale;
  CheckLikeWeight(output.codes, sizes, options.dtype(at::kFloat8_e4m3fn));
  TORCH_CHECK(output.codes.is_cuda() && scale.dim() == 2 && scale.size(0) == sizes[0] &&
                  scale.size(1) * kFp8Block == sizes[1] && scale.stride(0) == 1 &&
                  scale.scalar_type() == at::kFloat,
              "scales of codes are [N, K / 128], rows contiguous");
  fake_quantized = nullptr;
  fp8.codes = static_cast<uint8_t*>(output.codes.data_ptr());
  fp8.scale = scale.mutable_data_ptr<float>();
  fp8.groups_per_row = scale.size(1);
  fp8.scale_stride = scale.stride(1);
}

}  // namespace ptq
