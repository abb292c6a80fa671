#include "worker/divergence.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

namespace ptq {
namespace {

at::Tensor LogitsOf(std::vector<std::vector<double>> probabilities) {
  std::vector<float> values;
  for (const auto& row : probabilities) {
    for (const double p : row) values.push_back(static_cast<float>(std::log(p)));
  }
  return at::tensor(values).view({static_cast<int64_t>(probabilities.size()), -1});
}

TEST(DivergenceTest, FiguresOfTwoPositionsByHand) {
  Divergence divergence;
  divergence.Add(LogitsOf({{0.5, 0.25, 0.25}, {0.8, 0.1, 0.1}}),
                 LogitsOf({{0.25, 0.5, 0.25}, {0.8, 0.1, 0.1}}), at::tensor({0, 0}, at::kLong));
  const DivergenceFigures figures = divergence.Figures();
  // .5 ln 2 + .25 ln .5 = .25 ln 2 at the first position, 0 at the second.
  EXPECT_NEAR(figures.mean_kld, 0.125 * std::log(2), 1e-7);
  EXPECT_NEAR(figures.median_kld, 0.125 * std::log(2), 1e-7);
  EXPECT_NEAR(figures.max_kld, 0.25 * std::log(2), 1e-7);
  EXPECT_NEAR(figures.p99_kld, 0.99 * 0.25 * std::log(2), 1e-7);
  EXPECT_DOUBLE_EQ(figures.top1_agreement, 0.5);
  EXPECT_NEAR(figures.rms_delta_p, 0.25 / std::sqrt(2), 1e-7);
  EXPECT_NEAR(divergence.original_losses().Perplexity(), 1 / std::sqrt(0.5 * 0.8), 1e-6);
  EXPECT_NEAR(divergence.quantized_losses().Perplexity(), 1 / std::sqrt(0.25 * 0.8), 1e-6);
}

TEST(DivergenceTest, EqualLogitsDoNotDiverge) {
  const at::Tensor logits = at::randn({50, 300}) * 5;
  Divergence divergence;
  divergence.Add(logits, logits, at::zeros({50}, at::kLong));
  EXPECT_EQ(divergence.Figures().max_kld, 0);
  EXPECT_EQ(divergence.Figures().top1_agreement, 1);
  EXPECT_EQ(divergence.Figures().rms_delta_p, 0);
}

TEST(DivergenceTest, PiecesAddUp) {
  const at::Tensor p = at::randn({40, 30}), q = p + 0.3 * at::randn({40, 30});
  const at::Tensor targets = at::randint(30, {40}, at::kLong);
  Divergence whole, pieces;
  whole.Add(p, q, targets);
  for (int64_t i = 0; i < 40; i += 8) {
    pieces.Add(p.narrow(0, i, 8), q.narrow(0, i, 8), targets.narrow(0, i, 8));
  }
  EXPECT_EQ(pieces.positions(), 40);
  EXPECT_NEAR(pieces.Figures().mean_kld, whole.Figures().mean_kld, 1e-12);
  EXPECT_EQ(pieces.Figures().p999_kld, whole.Figures().p999_kld);
  EXPECT_EQ(pieces.Figures().top1_agreement, whole.Figures().top1_agreement);
}

TEST(DivergenceTest, HistogramCountsEveryPositionOnce) {
  Divergence divergence;
  const at::Tensor p = at::randn({64, 20});
  divergence.Add(p, p + at::randn({64, 20}), at::zeros({64}, at::kLong));
  divergence.Add(p, p, at::zeros({64}, at::kLong));  // no divergence: the first bin
  const KldHistogram histogram = divergence.Histogram();
  EXPECT_EQ(std::accumulate(histogram.counts.begin(), histogram.counts.end(), int64_t{0}), 128);
  EXPECT_GE(histogram.counts.front(), 64);
}

TEST(DivergenceTest, NothingScoredGivesZeros) {
  const Divergence divergence;
  EXPECT_EQ(divergence.Figures().mean_kld, 0);
  EXPECT_EQ(divergence.original_losses().Perplexity(), 0);
}

}  // namespace
}  // namespace ptq
