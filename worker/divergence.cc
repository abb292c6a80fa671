#include "worker/divergence.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>

namespace ptq {
namespace {

double Percentile(const std::vector<float>& sorted, double fraction) {
  const double rank = fraction * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(rank);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  const double weight = rank - static_cast<double>(below);
  return sorted[below] * (1 - weight) + sorted[above] * weight;
}

}  // namespace

double TokenLosses::Perplexity() const {
  return tokens == 0 ? 0 : std::exp(sum / static_cast<double>(tokens));
}

void Divergence::Add(const at::Tensor& original, const at::Tensor& quantized,
                     const at::Tensor& targets) {
  c10::NoGradGuard no_grad;
  const int64_t count = targets.size(0);
  if (count == 0) return;
  const at::Tensor log_p = at::log_softmax(original, -1);
  const at::Tensor log_q = at::log_softmax(quantized, -1);
  const at::Tensor index = targets.unsqueeze(1);
  const at::Tensor target_log_p = log_p.gather(1, index).squeeze(1).to(at::kDouble);
  const at::Tensor target_log_q = log_q.gather(1, index).squeeze(1).to(at::kDouble);
  original_.Add({-target_log_p.sum().item<double>(), count});
  quantized_.Add({-target_log_q.sum().item<double>(), count});
  const at::Tensor delta_p = target_log_q.exp() - target_log_p.exp();
  delta_p_square_sum_ += delta_p.square().sum().item<double>();
  same_top1_ += original.argmax(-1).eq(quantized.argmax(-1)).sum().item<int64_t>();
  // Rounding makes a divergence of nearly equal distributions slightly negative: 0 is the true
  // bound.
  const at::Tensor klds =
      (log_p.exp() * (log_p - log_q)).sum(-1, /*keepdim=*/false, at::kDouble).clamp_min(0);
  kld_sum_ += klds.sum().item<double>();
  const at::Tensor host = klds.to(at::kFloat).cpu().contiguous();
  klds_.insert(klds_.end(), host.const_data_ptr<float>(), host.const_data_ptr<float>() + count);
}

DivergenceFigures Divergence::Figures() const {
  DivergenceFigures figures;
  if (klds_.empty()) return figures;
  std::vector<float> sorted = klds_;
  std::sort(sorted.begin(), sorted.end());
  const auto count = static_cast<double>(sorted.size());
  figures.mean_kld = kld_sum_ / count;
  figures.median_kld = Percentile(sorted, 0.5);
  figures.p99_kld = Percentile(sorted, 0.99);
  figures.p999_kld = Percentile(sorted, 0.999);
  figures.max_kld = sorted.back();
  figures.top1_agreement = static_cast<double>(same_top1_) / count;
  figures.rms_delta_p = std::sqrt(delta_p_square_sum_ / count);
  return figures;
}

KldHistogram Divergence::Histogram() const {
  KldHistogram histogram;
  const auto bins = static_cast<double>(histogram.counts.size());
  for (const float kld : klds_) {
    const double position = kld > 0 ? (std::log10(kld) - KldHistogram::kLog10Min) /
                                          (KldHistogram::kLog10Max - KldHistogram::kLog10Min) * bins
                                    : 0;
    ++histogram.counts[static_cast<size_t>(std::clamp(position, 0.0, bins - 1))];
  }
  return histogram;
}

}  // namespace ptq
