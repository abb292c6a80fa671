// How far quantized predictions are from the original's, token by token.
#ifndef PTQ_WORKER_DIVERGENCE_H_
#define PTQ_WORKER_DIVERGENCE_H_

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <vector>

namespace ptq {

// Negative log-likelihoods of one model's predictions.
struct TokenLosses {
  double sum = 0;  // nats
  int64_t tokens = 0;

  double Perplexity() const;
  void Add(const TokenLosses& other) {
    sum += other.sum;
    tokens += other.tokens;
  }
};

// Figures over all scored positions; KLD is KL(original || quantized) in nats.
struct DivergenceFigures {
  double mean_kld = 0;
  double median_kld = 0;
  double p99_kld = 0;
  double p999_kld = 0;
  double max_kld = 0;
  double top1_agreement = 0;  // fraction of positions with the same most likely token
  double rms_delta_p = 0;     // of the true token's probability
};

// Positions by log10 of their KLD, in equal bins; outliers are counted in the outermost ones.
struct KldHistogram {
  static constexpr double kLog10Min = -8;
  static constexpr double kLog10Max = 2;
  std::array<int64_t, 50> counts{};
};

// Collects positions piece by piece; keeps one float a position. Thread-compatible.
class Divergence {
 public:
  // `original` and `quantized` [n, V] float32 logits on one device, `targets` [n] int64 the true
  // next tokens. Log-probabilities in float32, sums in float64.
  void Add(const at::Tensor& original, const at::Tensor& quantized, const at::Tensor& targets);

  int64_t positions() const { return static_cast<int64_t>(klds_.size()); }
  const TokenLosses& original_losses() const { return original_; }
  const TokenLosses& quantized_losses() const { return quantized_; }
  // Percentiles interpolate linearly between ranks, as numpy's.
  DivergenceFigures Figures() const;
  KldHistogram Histogram() const;

 private:
  TokenLosses original_;
  TokenLosses quantized_;
  std::vector<float> klds_;
  double kld_sum_ = 0;
  int64_t same_top1_ = 0;
  double delta_p_square_sum_ = 0;
};

}  // namespace ptq

#endif  // PTQ_WORKER_DIVERGENCE_H_
