#include "algorithms/affine/affine_quantized_tensor.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

namespace ptq {
namespace {

at::Tensor DequantizeKQuant(const AffineQuantizedTensor& tensor, at::ScalarType dtype) {
  const GroupValues groups = GroupValuesOf(tensor.super_blocks);
  const int64_t rows = tensor.int_data.size(0);
  at::Tensor values = tensor.int_data.to(at::kFloat)
                          .contiguous()
                          .view({rows, groups.scale.size(1), tensor.block_size[1]});
  if (groups.minimum.defined()) values.add_(static_cast<double>(-tensor.quant_min));
  values.mul_(groups.scale.unsqueeze(2));
  if (groups.minimum.defined()) values.sub_(groups.minimum.unsqueeze(2));
  return values.view(tensor.int_data.sizes()).to(dtype);
}

}  // namespace

std::vector<at::Tensor*> TensorsOf(AffineQuantizedTensor& tensor) {
  std::vector<at::Tensor*> tensors;
  SuperBlockScales& super = tensor.super_blocks;
  for (at::Tensor* one : {&tensor.int_data, &tensor.scale, &tensor.zero_point, &super.scale,
                          &super.minimum, &super.sub_scale, &super.sub_minimum}) {
    if (one->defined()) tensors.push_back(one);
  }
  return tensors;
}

GroupValues GroupValuesOf(const SuperBlockScales& scales) {
  const c10::NoGradGuard no_grad;
  const auto product = [](const at::Tensor& super, const at::Tensor& sub) {
    const at::Tensor values = sub.to(at::kFloat).view({sub.size(0), super.size(1), -1});
    return values.mul(super.to(at::kFloat).unsqueeze(2)).view(sub.sizes());
  };
  GroupValues values;
  values.scale = product(scales.scale, scales.sub_scale);
  if (scales.minimum.defined()) values.minimum = product(scales.minimum, scales.sub_minimum);
  return values;
}

at::Tensor Dequantize(const AffineQuantizedTensor& tensor, at::ScalarType dtype) {
  const c10::NoGradGuard no_grad;
  if (tensor.k_quant != KQuant::kNone) return DequantizeKQuant(tensor, dtype);
  const auto [b0, b1] = tensor.block_size;
  const int64_t rows = tensor.int_data.size(0);
  const int64_t columns = tensor.int_data.size(1);
  const auto broadcastable = [](const at::Tensor& qparam) {
    return qparam.to(at::kFloat).view({qparam.size(0), 1, qparam.size(1), 1});
  };
  at::Tensor values =
      tensor.int_data.to(at::kFloat).contiguous().view({rows / b0, b0, columns / b1, b1});
  if (tensor.zero_point_domain == ZeroPointDomain::kFloat) {
    values.sub_(static_cast<double>(tensor.quant_max + tensor.quant_min + 1) / 2)
        .mul_(broadcastable(tensor.scale))
        .add_(broadcastable(tensor.zero_point));
  } else {
    if (tensor.zero_point_domain == ZeroPointDomain::kInt && tensor.zero_point.defined()) {
      values.sub_(broadcastable(tensor.zero_point));
    }
    values.mul_(broadcastable(tensor.scale));
  }
  return values.view({rows, columns}).to(dtype);
}

at::Tensor Dequantize(const AffineQuantizedTensor& tensor) {
  return Dequantize(tensor, tensor.original_dtype);
}

}  // namespace ptq
