// Forward pass, gradients and Adam steps of U and t against autograd through an independent
// straight-through formulation and Adam in float64.
#include "algorithms/auto_round/learned_scale_parameters.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>
#include <vector>

#include "algorithms/auto_round/schedule.h"
#include "algorithms/rtn/rtn.h"
#include "algorithms/rtn/scale_search.h"
#include "tests/algorithms/auto_round/scheme_cases.h"

namespace ptq {
namespace {

constexpr int64_t kRows = 24;
constexpr int64_t kColumns = 320;

struct Rates {
  explicit Rates(int64_t iterations)
      : value(CosineDecay(1.0, iterations)),
        range(CosineDecay(0.2, iterations)),
        first(MomentCorrections(0.5, iterations)),
        second(MomentCorrections(0.95, iterations)) {}
  StepRates get() const {
    return {.value = value.data(),
            .range = range.data(),
            .first_correction = first.data(),
            .second_correction = second.data(),
            .step = &step};
  }
  std::vector<float> value;
  std::vector<float> range;
  std::vector<float> first;
  std::vector<float> second;
  int64_t step = 0;
};

at::Tensor RandomWeight() {
  at::manual_seed(12);
  at::Tensor weight = at::randn({kRows, kColumns}) * at::exp(at::randn({kRows, 1}));
  weight[3].zero_();
  weight[5].abs_().mul_(1e-4);
  return weight.to(at::kBFloat16).to(at::kFloat);
}

class LearnedScaleTest : public testing::SchemeTest {
 protected:
  QParams Start(const at::Tensor& weight) const {
    return SearchScales(weight, at::rand({kColumns}), scheme());
  }
};

TEST_P(LearnedScaleTest, StartsAsRoundingToTheSearchedScales) {
  const at::Tensor weight = RandomWeight();
  const QParams start = Start(weight);
  LearnedScaleParameters parameters(weight, at::kBFloat16, scheme(), start);
  const AffineQuantizedTensor expected = QuantizeToScales(weight, start, at::kBFloat16, scheme());
  const AffineQuantizedTensor record = parameters.Record();
  EXPECT_TRUE(at::equal(record.int_data, expected.int_data));
  EXPECT_TRUE(at::equal(record.scale, expected.scale));
  EXPECT_TRUE(at::equal(record.zero_point, expected.zero_point));
  const at::Tensor output = at::empty_like(weight);
  parameters.FakeQuantize({output});
  EXPECT_TRUE(at::equal(output, Dequantize(expected).to(at::kFloat)));
}

// The record is what the last forward pass would be, wherever U and t have gone.
TEST_P(LearnedScaleTest, RecordIsTheForwardPass) {
  const at::Tensor weight = RandomWeight();
  LearnedScaleParameters parameters(weight, at::kBFloat16, scheme(), Start(weight));
  Rates rates(4);
  for (rates.step = 0; rates.step < 4; ++rates.step) {
    const at::Tensor output = at::empty_like(weight);
    parameters.FakeQuantize({output});
    EXPECT_TRUE(at::equal(output, Dequantize(parameters.Record()).to(at::kFloat)));
    parameters.Step(at::randn_like(weight), rates.get(), {at::empty_like(weight)});
  }
  const AffineQuantizedTensor record = parameters.Record();
  EXPECT_GE(record.int_data.min().item<int64_t>(), record.quant_min);
  EXPECT_LE(record.int_data.max().item<int64_t>(), record.quant_max);
}

TEST_P(LearnedScaleTest, GradientsAreThoseOfAutograd) {
  const at::Tensor weight = RandomWeight();
  // Scales that are powers of two and gradients that are small integers: U's gradients are exact in
  // bfloat16, in which their moment is kept.
  QParams start = Start(weight);
  start.scale = start.scale.to(at::kFloat)
                    .abs()
                    .log2()
                    .round()
                    .clamp_min(-16)  // above the floor of 1e-5
                    .exp2()
                    .mul(start.scale.to(at::kFloat).sign())
                    .to(at::kHalf);
  LearnedScaleParameters parameters(weight, at::kFloat, scheme(), start);
  const at::Tensor gradient = at::randint(-8, 9, {kRows, kColumns}).to(at::kFloat);

  const auto [b0, b1] = BlockSizeOf(scheme(), kRows, kColumns);
  const auto blocked = [b0 = b0, b1 = b1](const at::Tensor& x) {
    return x.to(at::kDouble).view({kRows / b0, b0, kColumns / b1, b1});
  };
  const auto spread = [b0 = b0, b1 = b1](const at::Tensor& x) {
    return x.to(at::kDouble).view({kRows / b0, 1, kColumns / b1, 1});
  };
  const at::Tensor s0 = spread(start.scale);
  const at::Tensor z =
      scheme().symmetric ? at::zeros_like(s0) : spread(start.zero_point) - scheme().quant_min();
  const at::Tensor u = blocked(parameters.position()).detach().set_requires_grad(true);
  const at::Tensor t = spread(parameters.factor()).detach().set_requires_grad(true);
  const double lowest = scheme().symmetric ? scheme().quant_min() : 0;
  const double highest = lowest + scheme().quant_max() - scheme().quant_min();
  const at::Tensor rounded = u + (u.round() - u).detach();
  const at::Tensor codes = (rounded + z).clamp(lowest, highest);
  const at::Tensor decoded = s0 * t * (codes - z);
  const auto expected = torch::autograd::grad({decoded}, {u, t}, {blocked(gradient)});

  parameters.FakeQuantize({at::empty_like(weight)});
  const Rates rates(30);
  parameters.Step(gradient, rates.get(), {at::empty_like(gradient)});
  EXPECT_TRUE(at::equal(blocked(parameters.first_moment()) * 2, expected[0]));
  const at::Tensor t_gradient = spread(parameters.factor_first_moment()) * 2;
  const at::Tensor terms = (blocked(gradient).abs() * (s0 * (codes - z)).abs()).sum({1, 3}, true);
  const at::Tensor difference = (t_gradient - expected[1]).abs() / terms.clamp_min(1e-30);
  EXPECT_LT(difference.max().item<double>(), 1e-6);
  // The sums themselves to five digits wherever they do not cancel to a hundredth of their terms.
  const at::Tensor relative = ((t_gradient - expected[1]) / expected[1])
                                  .abs()
                                  .masked_select(expected[1].abs() > 0.01 * terms);
  EXPECT_LT(relative.numel() > 0 ? relative.max().item<double>() : 0, 1e-5);
}

TEST_P(LearnedScaleTest, StepsAreAdams) {
  const at::Tensor weight = RandomWeight();
  LearnedScaleParameters parameters(weight, at::kFloat, scheme(), Start(weight));
  const at::Tensor start = parameters.position().clone();
  at::Tensor m = at::zeros({kRows, kColumns}, at::kDouble);
  at::Tensor v = at::zeros_like(m);
  at::Tensor expected = start.to(at::kDouble);
  Rates rates(10);
  const at::Tensor output = at::empty_like(weight);
  for (rates.step = 0; rates.step < 5; ++rates.step) {
    const at::Tensor before = parameters.first_moment().to(at::kDouble);
    parameters.FakeQuantize({output});
    const at::Tensor gradient = at::randn_like(weight);
    parameters.Step(gradient, rates.get(), {at::empty_like(gradient)});
    // The gradient that was used, from the moment it left (rounded to bfloat16).
    const at::Tensor g = (parameters.first_moment().to(at::kDouble) - 0.5 * before) * 2;
    m = 0.5 * m + 0.5 * g;
    v = 0.95 * v + 0.05 * g.square();
    const double k = static_cast<double>(rates.step) + 1;
    const at::Tensor direction = m / (1 - std::pow(0.5, k)) / (v / (1 - std::pow(0.95, k))).sqrt();
    expected = expected - rates.value[static_cast<size_t>(rates.step)] *
                              at::where(v.gt(0), direction, at::zeros_like(v));
  }
  // Steps sum to at most a few tenths; bfloat16 moments are good to 0.4 %.
  EXPECT_LT((parameters.position() - expected).abs().max().item<double>(), 0.01);
  EXPECT_GT((parameters.position() - start).abs().max().item<double>(), 0.1);
}

INSTANTIATE_TEST_SUITE_P(Schemes, LearnedScaleTest,
                         ::testing::Combine(::testing::Values(2, 3, 4, 8), ::testing::Bool(),
                                            ::testing::Values(int64_t{32},
                                                              QuantizationScheme::kPerChannel,
                                                              QuantizationScheme::kPerTensor)),
                         testing::CaseName);

// Dead neurons have gradients that are zero or all but zero; Adam would make full steps of the
// latter.
TEST(LearnedScaleParameters, GradientsWithoutMeaningMoveNothing) {
  at::manual_seed(2);
  const at::Tensor weight = at::randn({4, 64});
  QuantizationScheme scheme;
  scheme.group_size = 32;
  LearnedScaleParameters parameters(weight, at::kFloat, scheme,
                                    SearchScales(weight, at::ones({64}), scheme));
  const at::Tensor start = parameters.position().clone();
  Rates rates(20);
  for (rates.step = 0; rates.step < 20; ++rates.step) {
    parameters.FakeQuantize({at::empty_like(weight)});
    at::Tensor gradient = at::randn({4, 64}) * 1e-3;
    gradient.select(1, 5).zero_();
    gradient.select(1, 6).mul_(1e-13);
    gradient.select(1, 7).fill_(std::numeric_limits<float>::infinity());
    gradient.select(1, 8).fill_(std::numeric_limits<float>::quiet_NaN());
    gradient.narrow(1, 32, 32).zero_();  // a whole group
    parameters.Step(gradient, rates.get(), {at::empty_like(gradient)});
  }
  const at::Tensor moved = parameters.position() - start;
  EXPECT_TRUE(parameters.position().isfinite().all().item<bool>());
  EXPECT_EQ(moved.narrow(1, 5, 4).abs().max().item<float>(), 0);
  EXPECT_EQ(moved.narrow(1, 32, 32).abs().max().item<float>(), 0);
  EXPECT_GT(moved.narrow(1, 9, 23).ne(0).sum().item<int64_t>(), 80) << "of 92, some are clamped";
}

TEST(LearnedScaleParameters, ThreadsDoNotChangeBits) {
  const at::Tensor weight = at::randn({64, 5000});
  const at::Tensor gradient = at::randn_like(weight);
  QuantizationScheme scheme;
  scheme.group_size = QuantizationScheme::kPerTensor;
  scheme.symmetric = false;
  const QParams start = SearchScales(weight, at::ones({5000}), scheme);
  const int threads = at::get_num_threads();
  std::vector<at::Tensor> results;
  for (const int count : {1, 2}) {
    at::set_num_threads(count);
    LearnedScaleParameters parameters(weight, at::kFloat, scheme, start);
    Rates rates(3);
    const at::Tensor output = at::empty_like(weight);
    for (rates.step = 0; rates.step < 3; ++rates.step) {
      parameters.FakeQuantize({output});
      parameters.Step(gradient, rates.get(), {at::empty_like(gradient)});
    }
    results.push_back(
        at::cat({output.view({-1}), parameters.position().view({-1}), parameters.factor()}));
  }
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(results[0], results[1]));
}

}  // namespace
}  // namespace ptq
