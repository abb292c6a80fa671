#include "algorithms/affine/affine_quantized_tensor.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

namespace ptq {

at::Tensor Dequantize(const AffineQuantizedTensor& tensor, at::ScalarType dtype) {
  const c10::NoGradGuard no_grad;
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
