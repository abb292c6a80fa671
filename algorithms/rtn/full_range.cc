#include "algorithms/rtn/full_range.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

namespace ptq {
namespace {

constexpr double kMinScale = 1e-5;
constexpr double kMaxHalf = 65504;
constexpr int64_t kValuesPerPiece = int64_t{1} << 20;  // float32: 4 MiB a temporary

}  // namespace

at::Tensor ToStoredScale(const at::Tensor& scale) {
  const at::Tensor half = scale.clamp(-kMaxHalf, kMaxHalf).to(at::kHalf);
  return at::where(half < 0, half.clamp_max(-kMinScale), half.clamp_min(kMinScale));
}

QParams ChooseFullRangeQParams(const at::Tensor& weight, const QuantizationScheme& scheme) {
  const c10::NoGradGuard no_grad;
  const auto [b0, b1] = BlockSizeOf(scheme, weight.size(0), weight.size(1));
  const at::Tensor blocked =
      weight.contiguous().view({weight.size(0) / b0, b0, weight.size(1) / b1, b1});
  // Extremes in the weight's dtype are exact; from here on float32.
  const at::Tensor low = blocked.amin({1, 3}).to(at::kFloat).clamp_max_(0);
  const at::Tensor high = blocked.amax({1, 3}).to(at::kFloat).clamp_min_(0);
  if (scheme.symmetric) {
    const double half_range = static_cast<double>(-scheme.quant_min());
    // Division by a power of two is exact.
    const at::Tensor scale = at::where(high < -low, -low, -high) / half_range;
    return {ToStoredScale(scale), at::zeros(scale.sizes(), scale.options().dtype(at::kInt))};
  }
  const at::Tensor levels =
      at::full({}, static_cast<double>(scheme.quant_max() - scheme.quant_min()), low.options());
  const at::Tensor scale = ToStoredScale((high - low).div_(levels));
  const at::Tensor zero_point = (-low)
                                    .div_(scale.to(at::kFloat))
                                    .round_()
                                    .add_(scheme.quant_min())
                                    .clamp_(scheme.quant_min(), scheme.quant_max());
  return {scale, zero_point.to(at::kInt)};
}

at::Tensor RoundToCodes(const at::Tensor& weight, const QParams& qparams,
                        const QuantizationScheme& scheme) {
  const c10::NoGradGuard no_grad;
  const int64_t rows = weight.size(0);
  const int64_t columns = weight.size(1);
  const auto [b0, b1] = BlockSizeOf(scheme, rows, columns);
  const at::Tensor scale = qparams.scale.to(at::kFloat).unsqueeze(-1);  // [N/b0, K/b1, 1]
  const at::Tensor zero_point =
      scheme.symmetric ? at::Tensor() : qparams.zero_point.to(at::kFloat).unsqueeze(-1);
  at::Tensor codes = at::empty({rows, columns}, weight.options().dtype(at::kChar));
  const int64_t step = std::max<int64_t>(1, kValuesPerPiece / columns);
  for (int64_t row = 0; row < rows; row += step) {
    const int64_t count = std::min(step, rows - row);
    const auto part = [&](const at::Tensor& qparam) {
      return b0 == 1 ? qparam.narrow(0, row, count) : qparam;
    };
    at::Tensor values =
        weight.narrow(0, row, count).to(at::kFloat).contiguous().view({count, columns / b1, b1});
    values = values.div(part(scale)).round_();
    if (!scheme.symmetric) {
      values.add_(part(zero_point));
    }
    values.clamp_(scheme.quant_min(), scheme.quant_max());
    codes.narrow(0, row, count).copy_(values.view({count, columns}));
  }
  return codes;
}

}  // namespace ptq
