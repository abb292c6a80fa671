// Routers against the indices and weights that transformers 5.23's router modules give for the same
// states, weights and biases (MixtralTopKRouter, Qwen2MoeTopKRouter, DeepseekV2TopkRouter,
// DeepseekV3TopkRouter).
#include "models/expert_router.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

namespace ptq {
namespace {

constexpr int64_t kExperts = 8;

// 3 tokens of 4 values.
at::Tensor Hidden() {
  const at::Tensor column = at::arange(4, at::kFloat);
  return at::sin(0.7 * at::arange(3, at::kFloat).unsqueeze(1) + 1.3 * column * column);
}

at::Tensor Weight() {
  const at::Tensor expert = at::arange(kExperts, at::kFloat).unsqueeze(1);
  return at::cos(0.9 * expert * at::arange(4, at::kFloat) + 0.3 * expert);
}

at::Tensor Correction() { return 0.3 * at::cos(2.0 * at::arange(kExperts, at::kFloat)); }

RouterConfig Softmax() { return {.experts = kExperts, .experts_per_token = 3}; }

RouterConfig DeepSeek() {
  RouterConfig config = Softmax();
  config.scaling = 2.5;
  config.float32_logits = true;
  return config;
}

RouterConfig Sigmoid() {
  RouterConfig config = DeepSeek();
  config.scores = RouterConfig::Scores::kSigmoid;
  config.groups = 4;
  config.groups_per_token = 2;
  config.scores_per_group = 2;
  config.normalize = true;
  config.epsilon = 1e-20;
  return config;
}

void ExpectRouting(const Routing& routing, const std::vector<int64_t>& experts,
                   const std::vector<float>& weights, double tolerance = 2e-6) {
  const auto [sorted, order] = routing.experts.sort(-1);
  EXPECT_TRUE(sorted.flatten().equal(at::tensor(experts))) << sorted;
  const at::Tensor actual = routing.weights.gather(1, order).flatten().to(at::kFloat);
  EXPECT_LT((actual - at::tensor(weights)).abs().max().item<double>(), tolerance) << actual;
}

const std::vector<int64_t> kBest = {1, 5, 7, 0, 1, 5, 0, 2, 6};

TEST(ExpertRouterTest, ProbabilitiesOfAllExpertsAreKeptAsTheyAre) {
  RouterConfig config = Softmax();
  config.weights_like_hidden = true;  // qwen2_moe, qwen3_moe
  ExpectRouting(RouteTokens(config, Hidden(), Weight(), {}), kBest,
                {0.3017448, 0.4388804, 0.09448638, 0.194064, 0.2576978, 0.238986, 0.4799775,
                 0.1184572, 0.1019059});
}

TEST(ExpertRouterTest, NormalizedWeightsOfATokenSumToOne) {
  RouterConfig config = Softmax();
  config.normalize = true;  // mixtral
  const Routing routing = RouteTokens(config, Hidden(), Weight(), {});
  ExpectRouting(routing, kBest,
                {0.3613227, 0.5255351, 0.1131422, 0.2809477, 0.3730707, 0.3459816, 0.6853487,
                 0.1691422, 0.1455091});
  EXPECT_TRUE(at::allclose(routing.weights.sum(-1), at::ones({3})));
}

TEST(ExpertRouterTest, InHalfPrecisionScoresAreFloat32BehindTheRoundedLogits) {
  RouterConfig config = Softmax();
  config.normalize = true;
  const at::Tensor hidden = Hidden().to(at::kBFloat16);
  const at::Tensor weight = Weight().to(at::kBFloat16);
  const Routing wide = RouteTokens(config, hidden, weight, {});
  EXPECT_EQ(wide.weights.scalar_type(), at::kFloat);
  ExpectRouting(wide, kBest,
                {0.3611358, 0.5254495, 0.1134147, 0.2809289, 0.3721703, 0.3469009, 0.6858231,
                 0.168726, 0.1454509});
  config.weights_like_hidden = true;
  const Routing narrow = RouteTokens(config, hidden, weight, {});
  EXPECT_EQ(narrow.weights.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(narrow.weights.equal(wide.weights.to(at::kBFloat16)));
}

TEST(ExpertRouterTest, Float32LogitsAreNotRounded) {
  const at::Tensor hidden = Hidden().to(at::kBFloat16);
  const at::Tensor weight = Weight().to(at::kBFloat16);
  const Routing half = RouteTokens(DeepSeek(), hidden, weight, {});
  const Routing exact = RouteTokens(DeepSeek(), hidden.to(at::kFloat), weight.to(at::kFloat), {});
  EXPECT_TRUE(half.weights.equal(exact.weights));
}

TEST(ExpertRouterTest, GreedyWeightsAreScaled) {
  ExpectRouting(RouteTokens(DeepSeek(), Hidden(), Weight(), {}), kBest,
                {0.7543619, 1.097201, 0.2362159, 0.48516, 0.6442446, 0.5974651, 1.199944, 0.2961429,
                 0.2547648});
}

TEST(ExpertRouterTest, GroupsAreChosenByTheirBestExpert) {
  RouterConfig config = DeepSeek();
  config.groups = 4;
  config.groups_per_token = 2;
  ExpectRouting(RouteTokens(config, Hidden(), Weight(), {}), {1, 4, 5, 0, 1, 5, 0, 1, 2},
                {0.7543619, 0.1449557, 1.097201, 0.48516, 0.6442446, 0.5974651, 1.199944, 0.1988295,
                 0.2961429});
}

TEST(ExpertRouterTest, CorrectionsChangeTheChoiceAndNotTheWeights) {
  ExpectRouting(RouteTokens(Sigmoid(), Hidden(), Weight(), Correction()),
                {0, 1, 7, 0, 1, 6, 0, 2, 3},
                {0.4779762, 1.173934, 0.8480901, 0.9171686, 0.9816966, 0.6011348, 1.065232,
                 0.8222583, 0.6125097});
}

TEST(ExpertRouterTest, SigmoidWeightsNeedNotBeNormalized) {
  RouterConfig config = Sigmoid();
  config.groups = 2;
  config.groups_per_token = 1;
  config.scaling = 1.5;
  config.normalize = false;
  ExpectRouting(RouteTokens(config, Hidden(), Weight(), Correction()), {0, 1, 3, 0, 1, 3, 0, 2, 3},
                {0.5037627, 1.237266, 0.3879332, 1.100713, 1.178154, 0.5185804, 1.354765, 1.045751,
                 0.7789917});
}

TEST(ExpertRouterTest, WeightsCarryGradientsToTheStates) {
  const at::Tensor hidden = Hidden().set_requires_grad(true);
  const Routing routing = RouteTokens(Sigmoid(), hidden, Weight(), Correction());
  const at::Tensor gradient =
      torch::autograd::grad({routing.weights.select(1, 0).sum()}, {hidden})[0];
  // By central differences, which do not change the choice.
  const at::NoGradGuard no_grad;
  constexpr float kStep = 1e-3F;
  for (int64_t i = 0; i < 12; ++i) {
    const auto at = [&](float step) {
      at::Tensor states = Hidden();
      states.view(-1)[i] += step;
      return RouteTokens(Sigmoid(), states, Weight(), Correction()).weights.select(1, 0).sum();
    };
    const double slope = ((at(kStep) - at(-kStep)) / (2 * kStep)).item<double>();
    EXPECT_NEAR(gradient.view(-1)[i].item<double>(), slope, 2e-3);
  }
}

}  // namespace
}  // namespace ptq
