// The hand-written forward pass, gradients and steps against autograd through an independent
// straight-through formulation.
#include "algorithms/auto_round/rounding_parameters.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <torch/csrc/autograd/autograd.h>

#include <ostream>
#include <tuple>
#include <vector>

#include "algorithms/affine/affine_primitives.h"
#include "algorithms/rtn/rtn.h"
#include "tests/algorithms/auto_round/scheme_cases.h"
#include "tests/algorithms/auto_round/straight_through.h"

namespace ptq {
namespace {

constexpr int64_t kRows = 24;
constexpr int64_t kColumns = 320;
constexpr float kRate = 1.0F / 64;

struct Rates {
  std::vector<float> value = {kRate};
  std::vector<float> range = {kRate};
  int64_t step = 0;
  int32_t improved = 0;
  StepRates get() const {
    return {.value = value.data(), .range = range.data(), .step = &step, .improved = &improved};
  }
};

at::Tensor RandomWeight(at::ScalarType stored = at::kBFloat16) {
  at::manual_seed(11);
  // Widely different groups, one of them zero, one of small positive numbers only.
  at::Tensor weight = at::randn({kRows, kColumns}) * at::exp(at::randn({kRows, 1}));
  weight[3].zero_();
  weight[5].abs_().mul_(1e-4);
  return weight.to(stored).to(at::kFloat);
}

class RoundingParametersTest : public testing::SchemeTest {
 protected:
  // Parameters somewhere on their way, away from the bounds of alpha and beta.
  void Perturb(const RoundingParameters& parameters) const {
    parameters.value().uniform_(-0.6, 0.6);
    parameters.alpha().uniform_(0.6, 0.95);
    parameters.beta().uniform_(0.6, 0.95);
  }
};

TEST_P(RoundingParametersTest, StartsAsRtn) {
  const at::Tensor weight = RandomWeight();
  RoundingParameters parameters(weight, at::kBFloat16, scheme());
  const at::Tensor output = at::empty_like(weight);
  parameters.FakeQuantize({output});
  const AffineQuantizedTensor rtn = QuantizeRtn(weight, at::kBFloat16, scheme());
  EXPECT_TRUE(at::equal(output, Dequantize(rtn).to(at::kFloat)));
}

TEST_P(RoundingParametersTest, ForwardIsTheStraightThroughFormula) {
  const at::Tensor weight = RandomWeight();
  RoundingParameters parameters(weight, at::kBFloat16, scheme());
  Perturb(parameters);
  const at::Tensor output = at::empty_like(weight);
  parameters.FakeQuantize({output});
  const auto block = BlockSizeOf(scheme(), kRows, kColumns);
  const int64_t group = block[0] * block[1];
  const at::Tensor expected =
      testing::StraightThrough({weight.view({-1, group}), parameters.value().view({-1, group}),
                                parameters.alpha().view({-1, 1}), parameters.beta().view({-1, 1})},
                               scheme());
  // What a loader sees is rounded to the stored dtype. The straight-through sums x + (r - x) are
  // exact but for the last bit.
  EXPECT_TRUE(at::allclose(output, expected.view({kRows, kColumns}), 1.0 / 128, 1e-9));
  EXPECT_TRUE(at::equal(output, output.to(at::kBFloat16).to(at::kFloat)));
}

TEST_P(RoundingParametersTest, StepsAgainstTheSignsOfAutograd) {
  const at::Tensor weight = RandomWeight();
  RoundingParameters parameters(weight, at::kFloat, scheme());
  Perturb(parameters);
  const auto block = BlockSizeOf(scheme(), kRows, kColumns);
  const int64_t group = block[0] * block[1];
  at::Tensor value = parameters.value().view({-1, group}).clone().set_requires_grad(true);
  at::Tensor alpha = parameters.alpha().view({-1, 1}).clone().set_requires_grad(true);
  at::Tensor beta = parameters.beta().view({-1, 1}).clone().set_requires_grad(true);
  const at::Tensor gradient = at::randn_like(weight);

  const at::Tensor decoded =
      testing::StraightThrough({weight.view({-1, group}), value, alpha, beta}, scheme());
  const auto expected =
      torch::autograd::grad({decoded}, {value, alpha, beta}, {gradient.view({-1, group})});

  const at::Tensor value_before = parameters.value().clone();
  const at::Tensor alpha_before = parameters.alpha().clone();
  const at::Tensor beta_before = parameters.beta().clone();
  parameters.FakeQuantize({at::empty_like(weight)});
  const Rates rates;
  parameters.Step(gradient, rates.get(), {at::empty_like(gradient)});

  const at::Tensor value_sign =
      ((value_before - parameters.value()) / kRate).round().view({-1, group});
  // An element at the very edge of two codes may land on either side in the two formulations.
  const at::Tensor differs = value_sign != expected[0].sign();
  EXPECT_LE(differs.sum().item<int64_t>(), weight.numel() / 1000);

  // The gradient of a range factor is a sum over its group: above rounding means above 1e-5 of the
  // terms' absolute sum.
  const at::Tensor scale = parameters.scale().view({-1, 1});
  const at::Tensor magnitude =
      (gradient.view({-1, group}).abs() * (weight.view({-1, group}) / scale).abs().clamp_min(1))
          .sum({1}, true) *
      weight.view({-1, group}).abs().amax({1}, true);
  for (const auto& [name, before, after, reference] :
       {std::tuple{"alpha", alpha_before, parameters.alpha(), expected[1]},
        std::tuple{"beta", beta_before, parameters.beta(), expected[2]}}) {
    const at::Tensor sign = ((before - after) / kRate).round().view({-1, 1});
    const at::Tensor matters = reference.abs() > 1e-5 * magnitude;
    EXPECT_TRUE(at::equal(sign.masked_select(matters), reference.sign().masked_select(matters)))
        << name;
    // Exact zeros of autograd are zeros here.
    EXPECT_EQ(sign.masked_select(reference == 0).abs().sum().item<double>(), 0) << name;
  }
}

TEST_P(RoundingParametersTest, KeepsTheCodesOfTheForwardPassBeforeTheStep) {
  const at::Tensor weight = RandomWeight();
  RoundingParameters parameters(weight, at::kBFloat16, scheme());
  Perturb(parameters);
  const at::Tensor best = at::empty_like(weight);
  parameters.FakeQuantize({best});
  Rates rates;
  rates.value = {0.5F, 0.5F};
  rates.range = {0.25F, 0.25F};
  rates.improved = 1;
  parameters.Step(at::randn_like(weight), rates.get(), {at::empty_like(weight)});
  const at::Tensor later = at::empty_like(weight);
  parameters.FakeQuantize({later});
  rates.improved = 0;
  parameters.Step(at::randn_like(weight), rates.get(), {at::empty_like(weight)});

  const AffineQuantizedTensor record = parameters.Record();
  EXPECT_TRUE(at::equal(Dequantize(record).to(at::kFloat), best));
  EXPECT_FALSE(at::equal(best, later));
  EXPECT_EQ(record.scale.scalar_type(), at::kHalf);
  EXPECT_EQ(record.quant_min, scheme().quant_min());
  EXPECT_GE(record.int_data.min().item<int64_t>(), record.quant_min);
  EXPECT_LE(record.int_data.max().item<int64_t>(), record.quant_max);
}

INSTANTIATE_TEST_SUITE_P(Schemes, RoundingParametersTest,
                         ::testing::Combine(::testing::Range(2, 9), ::testing::Bool(),
                                            ::testing::Values(int64_t{32},
                                                              QuantizationScheme::kPerChannel,
                                                              QuantizationScheme::kPerTensor)),
                         testing::CaseName);

TEST(RoundingParameters, TiedSidesBothStep) {
  const at::Tensor weight = at::full({1, 4}, 0.5F);
  weight[0][1] = -0.5F;
  QuantizationScheme scheme;
  scheme.group_size = 4;
  RoundingParameters parameters(weight, at::kFloat, scheme);
  parameters.FakeQuantize({at::empty_like(weight)});
  Rates rates;
  // The tie's scale is negative: 0.5 is -8 s, and -0.5 is clamped to 7 s, which grows with a
  // smaller range.
  parameters.Step(at::tensor({0.0F, -1.0F, 0.0F, 0.0F}).view({1, 4}), rates.get(),
                  {at::empty_like(weight)});
  EXPECT_FLOAT_EQ(parameters.alpha().item<float>(), 1.0F - kRate);
  EXPECT_FLOAT_EQ(parameters.beta().item<float>(), 1.0F - kRate);
}

TEST(RoundingParameters, FactorsStayBetweenZeroAndOne) {
  const at::Tensor weight = RandomWeight();
  for (const bool symmetric : {true, false}) {
    QuantizationScheme scheme;
    scheme.group_size = 32;
    scheme.symmetric = symmetric;
    RoundingParameters parameters(weight, at::kFloat, scheme);
    Rates rates;
    rates.range = {0.75F};
    const at::Tensor output = at::empty_like(weight);
    for (int i = 0; i < 6; ++i) {
      parameters.FakeQuantize({output});
      EXPECT_TRUE(output.isfinite().all().item<bool>());
      parameters.Step(at::randn_like(weight), rates.get(), {at::empty_like(weight)});
      for (const at::Tensor& factor : {parameters.alpha(), parameters.beta()}) {
        EXPECT_GE(factor.min().item<float>(), 0.0F);
        EXPECT_LE(factor.max().item<float>(), 1.0F);
      }
    }
  }
}

TEST(RoundingParameters, ThreadsDoNotChangeBits) {
  const at::Tensor weight = at::randn({64, 5000});
  const at::Tensor gradient = at::randn_like(weight);
  const int threads = at::get_num_threads();
  std::vector<at::Tensor> results;
  for (const int count : {1, 2}) {
    at::set_num_threads(count);
    QuantizationScheme scheme;
    scheme.group_size = QuantizationScheme::kPerTensor;
    scheme.symmetric = false;
    RoundingParameters parameters(weight, at::kFloat, scheme);
    const Rates rates;
    const at::Tensor output = at::empty_like(weight);
    for (int i = 0; i < 3; ++i) {
      parameters.FakeQuantize({output});
      parameters.Step(gradient, rates.get(), {at::empty_like(gradient)});
    }
    results.push_back(at::cat(
        {output.view({-1}), parameters.value().view({-1}), parameters.alpha(), parameters.beta()}));
  }
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(results[0], results[1]));
}

// A model may compute in its checkpoint's dtype: the same values as float32 rounded to it.
TEST(RoundingParameters, HalfPrecisionStorageGivesTheSameValues) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    at::Tensor weight = RandomWeight(dtype);
    weight[7].mul_(1e-3);  // decodes to float16 subnormals
    weight = weight.to(dtype).to(at::kFloat);
    QuantizationScheme scheme;
    scheme.group_size = 64;
    RoundingParameters wide(weight, dtype, scheme);
    RoundingParameters narrow(weight.to(dtype), dtype, scheme);
    const at::Tensor gradient = at::randn_like(weight).to(dtype).to(at::kFloat);
    const at::Tensor wide_output = at::empty_like(weight);
    const at::Tensor narrow_output = at::empty_like(weight, weight.options().dtype(dtype));
    Rates rates;
    rates.improved = 1;
    for (int i = 0; i < 4; ++i) {
      wide.FakeQuantize({wide_output});
      narrow.FakeQuantize({narrow_output});
      EXPECT_TRUE(at::equal(narrow_output.to(at::kFloat), wide_output)) << dtype;
      wide.Step(gradient, rates.get(), {at::empty_like(gradient)});
      narrow.Step(gradient.to(dtype), rates.get(), {at::empty_like(gradient.to(dtype))});
    }
    EXPECT_TRUE(at::equal(wide.value(), narrow.value()));
    EXPECT_TRUE(at::equal(wide.Record().int_data, narrow.Record().int_data));
    EXPECT_TRUE(at::equal(Dequantize(narrow.Record()).to(at::kFloat), wide_output));
  }
}

}  // namespace
}  // namespace ptq
