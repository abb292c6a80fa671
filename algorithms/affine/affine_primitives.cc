#include "algorithms/affine/affine_primitives.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <limits>

namespace ptq {
namespace {

// x [N, K] seen as [N/b0, b0, K/b1, b1]: reduced over dimensions 1 and 3.
at::Tensor BlockView(const at::Tensor& x, std::array<int64_t, 2> block_size) {
  TORCH_CHECK(x.dim() == 2, "expected a weight [N, K], got ", x.dim(), " dimensions");
  const auto [b0, b1] = block_size;
  TORCH_CHECK(b0 > 0 && b1 > 0 && x.size(0) % b0 == 0 && x.size(1) % b1 == 0, "block_size [", b0,
              ", ", b1, "] does not divide [", x.size(0), ", ", x.size(1), "]");
  return x.contiguous().view({x.size(0) / b0, b0, x.size(1) / b1, b1});
}

// A scale or zero point [N/b0, K/b1] that broadcasts against BlockView.
at::Tensor Broadcastable(const at::Tensor& qparam) {
  return qparam.view({qparam.size(0), 1, qparam.size(1), 1});
}

double SmallestNormal(at::ScalarType dtype) {
  switch (dtype) {
    case at::kHalf:
      return 6.103515625e-05;
    case at::kDouble:
      return std::numeric_limits<double>::min();
    default:  // bfloat16 has float32's exponents
      return std::numeric_limits<float>::min();
  }
}

double MidPoint(int64_t quant_min, int64_t quant_max) {
  return static_cast<double>(quant_max + quant_min + 1) / 2;
}

// The codes before the cast to integers, in x's blocked view and in the dtype that x and scale
// promote to.
at::Tensor QuantizeBlocked(const at::Tensor& blocked, const QParams& qparams, int64_t quant_min,
                           int64_t quant_max, ZeroPointDomain domain) {
  const at::Tensor scale = Broadcastable(qparams.scale);
  if (domain == ZeroPointDomain::kFloat) {
    const at::Tensor low =
        Broadcastable(qparams.zero_point) - scale * MidPoint(quant_min, quant_max);
    return ((blocked - low) / scale).round_().clamp_(quant_min, quant_max);
  }
  at::Tensor codes = (blocked * scale.reciprocal()).round_();
  if (domain == ZeroPointDomain::kInt && qparams.zero_point.defined()) {
    codes = codes + Broadcastable(qparams.zero_point);
  }
  return codes.clamp_(quant_min, quant_max);
}

at::Tensor DequantizeBlocked(const at::Tensor& blocked, const QParams& qparams, int64_t quant_min,
                             int64_t quant_max, at::ScalarType output_dtype,
                             ZeroPointDomain domain) {
  const at::Tensor scale = Broadcastable(qparams.scale);
  if (domain == ZeroPointDomain::kFloat) {
    at::Tensor values = (blocked.to(at::kFloat) - MidPoint(quant_min, quant_max)).to(output_dtype);
    values.mul_(scale);
    return values.add_(Broadcastable(qparams.zero_point));
  }
  at::Tensor values = blocked.to(output_dtype);
  if (domain == ZeroPointDomain::kInt && qparams.zero_point.defined()) {
    values = values - Broadcastable(qparams.zero_point).to(output_dtype);
  }
  return (values * scale).to(output_dtype);
}

}  // namespace

QParams ChooseQParamsAffine(const at::Tensor& input, std::array<int64_t, 2> block_size,
                            const ChooseQParamsOptions& options) {
  const c10::NoGradGuard no_grad;
  const bool asymmetric = options.mapping_type == MappingType::kAsymmetric;
  const bool float_domain = options.zero_point_domain == ZeroPointDomain::kFloat;
  TORCH_CHECK(asymmetric || (options.preserve_zero && !float_domain),
              "a symmetric mapping preserves zero and has an integer zero point");
  const at::Tensor blocked = BlockView(input, block_size);
  at::Tensor low = blocked.amin({1, 3});
  at::Tensor high = blocked.amax({1, 3});
  if (options.preserve_zero && !float_domain) {
    low = low.clamp_max(0);
    high = high.clamp_min(0);
  }
  const double eps = options.eps.value_or(SmallestNormal(input.scalar_type()));
  const at::ScalarType scale_dtype = options.scale_dtype.value_or(input.scalar_type());
  const double range = static_cast<double>(options.quant_max - options.quant_min);

  at::Tensor scale;
  at::Tensor zero_point;
  switch (options.mapping_type) {
    case MappingType::kSymmetric:
      scale = at::maximum(-low, high) / (range / 2);
      break;
    case MappingType::kSymmetricNoClippingErr:
      scale = at::maximum(low / static_cast<double>(options.quant_min),
                          high / static_cast<double>(options.quant_max));
      break;
    case MappingType::kAsymmetric:
      scale = (high - low) / range;
      break;
  }
  scale = scale.clamp_min(eps);
  if (float_domain) {
    zero_point = low + scale * MidPoint(options.quant_min, options.quant_max);
  } else if (asymmetric) {
    zero_point = (options.quant_min - (low / scale).round_())
                     .clamp(options.quant_min, options.quant_max)
                     .to(options.zero_point_dtype);
  } else {
    zero_point =
        at::full_like(scale, static_cast<int64_t>(MidPoint(options.quant_min, options.quant_max)),
                      scale.options().dtype(options.zero_point_dtype));
  }
  if (options.zero_point_domain == ZeroPointDomain::kNone) {
    zero_point = at::Tensor();
  }
  return {scale.to(scale_dtype), zero_point};
}

at::Tensor QuantizeAffine(const at::Tensor& input, std::array<int64_t, 2> block_size,
                          const QParams& qparams, int64_t quant_min, int64_t quant_max,
                          ZeroPointDomain domain) {
  const c10::NoGradGuard no_grad;
  const at::Tensor codes =
      QuantizeBlocked(BlockView(input, block_size), qparams, quant_min, quant_max, domain);
  return codes.view(input.sizes())
      .to(quant_max > std::numeric_limits<int8_t>::max() ? at::kByte : at::kChar);
}

at::Tensor DequantizeAffine(const at::Tensor& codes, std::array<int64_t, 2> block_size,
                            const QParams& qparams, int64_t quant_min, int64_t quant_max,
                            at::ScalarType output_dtype, ZeroPointDomain domain) {
  const c10::NoGradGuard no_grad;
  return DequantizeBlocked(BlockView(codes, block_size), qparams, quant_min, quant_max,
                           output_dtype, domain)
      .view(codes.sizes());
}

at::Tensor FakeQuantizeAffine(const at::Tensor& input, std::array<int64_t, 2> block_size,
                              const QParams& qparams, int64_t quant_min, int64_t quant_max) {
  const c10::NoGradGuard no_grad;
  const at::Tensor codes = QuantizeBlocked(BlockView(input, block_size), qparams, quant_min,
                                           quant_max, ZeroPointDomain::kInt);
  return DequantizeBlocked(codes, qparams, quant_min, quant_max, input.scalar_type(),
                           ZeroPointDomain::kInt)
      .view(input.sizes());
}

std::array<int64_t, 2> BlockSizeOf(const QuantizationScheme& scheme, int64_t rows,
                                   int64_t columns) {
  if (scheme.group_size == QuantizationScheme::kPerTensor) {
    return {rows, columns};
  }
  return {1, scheme.group_size == QuantizationScheme::kPerChannel ? columns : scheme.group_size};
}

}  // namespace ptq
