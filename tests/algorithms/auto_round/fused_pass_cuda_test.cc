// The fused pass through a block against autograd in float32. Needs an NVIDIA GPU: label gpu.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>

#include <string>
#include <tuple>
#include <vector>

#include "algorithms/auto_round/autograd_pass.h"
#include "algorithms/auto_round/fused_pass.h"
#include "algorithms/cuda/cuda_runtime.h"
#include "models/decoder_model.h"
#include "tests/testing/device_llama.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::ptq::testing::IsOk;

// With its linears shared as a Llama's are.
struct Subject : testing::DeviceLlamaBlock {
  Subject(const ModelConfig& config, at::ScalarType dtype) : DeviceLlamaBlock(config, dtype) {
    const GatedBlockParts parts = *block->gated_parts(kLength);
    for (const std::vector<size_t>& members :
         {std::vector<size_t>{parts.query, parts.key, parts.value},
          {parts.output},
          {parts.gate, parts.up},
          {parts.down}}) {
      SharedLinear& linear = shared.emplace_back();
      std::vector<at::Tensor> weights;
      std::vector<at::Tensor> biases;
      for (const size_t member : members) {
        const Linear& own = block->linears()[member];
        weights.push_back(own.weight);
        if (own.bias.defined()) biases.push_back(own.bias);
        linear.members.push_back(member);
        linear.rows.push_back(own.weight.size(0));
      }
      linear.weight = at::cat(weights);
      linear.in_features = linear.weight.size(1);
      if (!biases.empty()) linear.bias = at::cat(biases);
    }
  }

  std::vector<SharedLinear> shared;
  std::vector<at::Tensor> no_fixed_weights = std::vector<at::Tensor>(7);
};

struct Outcome {
  at::Tensor output;
  std::vector<at::Tensor> gradients;
};

Outcome RunPass(BlockPass& pass, const at::Tensor& hidden, const at::Tensor& output_gradient,
                size_t count) {
  const at::NoGradGuard no_grad;
  Outcome outcome;
  outcome.output = pass.Forward(hidden).to(at::kFloat);
  outcome.gradients.resize(count);
  pass.Backward(output_gradient, [&](size_t index, const at::Tensor& gradient) {
    EXPECT_FALSE(outcome.gradients[index].defined()) << "a gradient came twice";
    outcome.gradients[index] = gradient.to(at::kFloat).clone();
  });
  return outcome;
}

// The same in micro-batches of `count` samples.
Outcome RunInParts(BlockPass& pass, const at::Tensor& hidden, const at::Tensor& output_gradient,
                   int64_t count, size_t linears) {
  const at::NoGradGuard no_grad;
  Outcome outcome;
  std::vector<at::Tensor> outputs;
  outcome.gradients.resize(linears);
  const BlockPass::GradientSink keep = [&](size_t index, const at::Tensor& gradient) {
    EXPECT_FALSE(outcome.gradients[index].defined()) << "a gradient came twice";
    outcome.gradients[index] = gradient.to(at::kFloat).clone();
  };
  const std::vector<at::Tensor> parts = hidden.split(count);
  const std::vector<at::Tensor> gradients = output_gradient.split(count);
  for (size_t i = 0; i < parts.size(); ++i) {
    outputs.push_back(pass.Forward(parts[i]).to(at::kFloat));
    pass.Backward(gradients[i], i + 1 == parts.size() ? keep : nullptr);
  }
  outcome.output = at::cat(outputs);
  return outcome;
}

double RelativeError(const at::Tensor& actual, const at::Tensor& expected) {
  return ((actual - expected).norm() / expected.norm()).item<double>();
}

class FusedPassTest : public ::testing::TestWithParam<
                          std::tuple<std::tuple<int64_t, int64_t, int64_t>, bool, at::ScalarType>> {
 protected:
  void SetUp() override { ASSERT_THAT(LoadCuda(), IsOk()); }
};

TEST_P(FusedPassTest, AgreesWithAutogradInFloat32) {
  const auto [shape, bias, dtype] = GetParam();
  const auto [heads, key_heads, head_dim] = shape;
  const ModelConfig config = testing::DeviceLlamaConfig(heads, key_heads, head_dim, bias);
  Subject exact(config, at::kFloat);
  Subject narrow(config, dtype);
  Subject fused(config, dtype);
  at::manual_seed(9);
  const at::Tensor hidden = at::randn({3, 24, 192}).to(at::kBFloat16).to(at::kFloat).cuda();
  const at::Tensor gradient = at::randn({3, 24, 192}).to(at::kBFloat16).to(at::kFloat).cuda();

  EXPECT_EQ(FusedPass::Create(*exact.block, exact.rotary, exact.shared, false), nullptr)
      << "float32 has no flash attention";
  AutogradPass reference(*exact.block, exact.rotary, exact.no_fixed_weights, exact.shared);
  const Outcome expected = RunPass(reference, hidden, gradient, 4);
  AutogradPass rounded(*narrow.block, narrow.rotary, narrow.no_fixed_weights, narrow.shared);
  const Outcome eager = RunPass(rounded, hidden.to(dtype), gradient.to(dtype), 4);
  const auto pass = FusedPass::Create(*fused.block, fused.rotary, fused.shared, false);
  ASSERT_NE(pass, nullptr);
  EXPECT_EQ(pass->Path(3 * 24), "fused");
  const Outcome actual = RunPass(*pass, hidden.to(dtype), gradient.to(dtype), 4);

  const double least = dtype == at::kHalf ? 1e-3 : 6e-3;
  EXPECT_LT(RelativeError(actual.output, expected.output),
            std::max(least, 1.2 * RelativeError(eager.output, expected.output)));
  for (size_t i = 0; i < 4; ++i) {
    ASSERT_TRUE(actual.gradients[i].defined()) << i;
    EXPECT_LT(RelativeError(actual.gradients[i], expected.gradients[i]),
              std::max(least, 1.2 * RelativeError(eager.gradients[i], expected.gradients[i])))
        << "SharedLinear " << i;
  }
  // The same bits in a second run.
  const Outcome again = RunPass(*pass, hidden.to(dtype), gradient.to(dtype), 4);
  EXPECT_TRUE(again.output.equal(actual.output));
  for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(again.gradients[i].equal(actual.gradients[i])) << i;
  // In micro-batches, one of which is smaller.
  const Outcome parts = RunInParts(*pass, hidden.to(dtype), gradient.to(dtype), 2, 4);
  EXPECT_LT(RelativeError(parts.output, actual.output), least);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_LT(RelativeError(parts.gradients[i], actual.gradients[i]), least) << i;
  }
}

// Weights that are codes times scales: those of an FP8 forward product are exact, so that the
// errors are those of rounding activations and gradients to e4m3.
class FusedPassFp8Test : public ::testing::TestWithParam<std::tuple<int64_t, int64_t, int64_t>> {};

TEST_P(FusedPassFp8Test, AgreesWithAutogradInFloat32) {
  const auto [width, intermediate, samples] = GetParam();
  ASSERT_THAT(LoadCuda(), IsOk());
  if (!HasFp8Products()) GTEST_SKIP() << "needs compute capability 9.0";
  ModelConfig config =
      testing::DeviceLlamaConfig(/*heads=*/4, /*key_heads=*/2, /*head_dim=*/128, /*bias=*/true);
  config.hidden_size = width;
  config.intermediate_size = intermediate;
  config.max_position_embeddings = 128;
  for (const bool codes : {false, true}) {
    Subject exact(config, at::kFloat);
    Subject fused(config, at::kBFloat16);
    exact.rotary = exact.model->MakeRotaryTable(128);
    fused.rotary = fused.model->MakeRotaryTable(128);
    at::manual_seed(9);
    for (size_t i = 0; i < 4; ++i) {
      const at::IntArrayRef sizes = exact.shared[i].weight.sizes();
      const at::Tensor integers = at::randint(-8, 8, sizes, at::kFloat).cuda();
      const at::Tensor scale =
          (at::rand({sizes[1] / 128, sizes[0]}) * 0.01 + 0.005).to(at::kHalf).to(at::kFloat).cuda();
      exact.shared[i].weight = integers * scale.t().repeat_interleave(128, 1);
      fused.shared[i].weight = exact.shared[i].weight.to(at::kBFloat16);
      if (codes) {
        fused.shared[i].weight = at::Tensor();
        fused.shared[i].codes = {integers.to(at::kFloat8_e4m3fn), scale.t()};
      }
    }
    const at::Tensor hidden =
        at::randn({samples, 128, width}).to(at::kBFloat16).to(at::kFloat).cuda();
    const at::Tensor gradient =
        at::randn({samples, 128, width}).to(at::kBFloat16).to(at::kFloat).cuda();
    AutogradPass reference(*exact.block, exact.rotary, exact.no_fixed_weights, exact.shared);
    const Outcome expected = RunPass(reference, hidden, gradient, 4);
    const auto pass = FusedPass::Create(*fused.block, fused.rotary, fused.shared, /*fp8=*/true);
    ASSERT_NE(pass, nullptr);
    EXPECT_EQ(pass->Path(samples * 128), "fused fp8");
    const Outcome actual = RunPass(*pass, hidden.to(at::kBFloat16), gradient.to(at::kBFloat16), 4);
    EXPECT_LT(RelativeError(actual.output, expected.output), codes ? 0.05 : 0.01);
    for (size_t i = 0; i < 4; ++i) {
      const double error = RelativeError(actual.gradients[i], expected.gradients[i]);
      EXPECT_LT(error, 0.1) << "SharedLinear " << i;
      EXPECT_GT(error, 0.005) << "these products were not in FP8";
    }
    const Outcome again = RunPass(*pass, hidden.to(at::kBFloat16), gradient.to(at::kBFloat16), 4);
    EXPECT_TRUE(again.output.equal(actual.output));
    for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(again.gradients[i].equal(actual.gradients[i])) << i;
    const Outcome parts =
        RunInParts(*pass, hidden.to(at::kBFloat16), gradient.to(at::kBFloat16), 1, 4);
    EXPECT_LT(RelativeError(parts.output, actual.output), 0.01);
    for (size_t i = 0; i < 4; ++i) {  // contractions of 128 tokens have no tile scales
      EXPECT_LT(RelativeError(parts.gradients[i], expected.gradients[i]), 0.1) << i;
      EXPECT_LT(RelativeError(parts.gradients[i], actual.gradients[i]), 0.06) << i;
    }
  }
}

// The second: contractions whose scales do not come in tiles.
INSTANTIATE_TEST_SUITE_P(Sizes, FusedPassFp8Test,
                         ::testing::Values(std::tuple<int64_t, int64_t, int64_t>{512, 1024, 4},
                                           std::tuple<int64_t, int64_t, int64_t>{384, 640, 3}));

INSTANTIATE_TEST_SUITE_P(
    Blocks, FusedPassTest,
    ::testing::Combine(::testing::Values(std::tuple<int64_t, int64_t, int64_t>{4, 4, 16},
                                         std::tuple<int64_t, int64_t, int64_t>{6, 2, 32},
                                         std::tuple<int64_t, int64_t, int64_t>{4, 1, 64},
                                         std::tuple<int64_t, int64_t, int64_t>{2, 2, 128}),
                       ::testing::Bool(), ::testing::Values(at::kBFloat16, at::kHalf)));

}  // namespace
}  // namespace ptq
