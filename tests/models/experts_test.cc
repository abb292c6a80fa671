// The routed experts against the definition: every expert over every token in float64, times its
// weight, or zero.
#include "models/experts.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <map>
#include <vector>

namespace ptq {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

constexpr int64_t kTokens = 7;
constexpr int64_t kHidden = 6;
constexpr int64_t kInner = 5;
constexpr int64_t kExperts = 4;

class ExpertsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    at::manual_seed(11);
    for (int64_t expert = 0; expert < kExperts; ++expert) {
      experts_.push_back({weights_.size(), weights_.size() + 1, weights_.size() + 2});
      for (const auto& shape :
           {std::vector<int64_t>{kInner, kHidden}, {kInner, kHidden}, {kHidden, kInner}}) {
        weights_.push_back(at::randn(shape));
      }
    }
    hidden_ = at::randn({kTokens, kHidden});
    // Expert 2 has no token; the order of a token's experts is not that of their numbers.
    routing_.experts =
        at::tensor({3, 0, 1, 0, 0, 3, 3, 1, 1, 3, 0, 1, 3, 0}, at::kLong).view({kTokens, 2});
    routing_.weights = at::rand({kTokens, 2});
  }

  LinearFunction Apply() {
    return [this](size_t index, const at::Tensor& input) {
      rows_[index] = input.size(0);
      return at::linear(input, weights_[index]);
    };
  }

  at::Tensor Oracle(const at::Tensor& hidden, const at::Tensor& routing_weights,
                    const std::vector<at::Tensor>& weights) const {
    at::Tensor sum = at::zeros(hidden.sizes(), at::kDouble);
    for (int64_t expert = 0; expert < kExperts; ++expert) {
      const auto index = static_cast<size_t>(3 * expert);
      const at::Tensor gate = at::matmul(hidden, weights[index].t());
      const at::Tensor inner =
          gate * at::sigmoid(gate) * at::matmul(hidden, weights[index + 1].t());
      const at::Tensor share =
          at::where(routing_.experts.eq(expert), routing_weights, at::zeros({}, at::kDouble))
              .sum(1, true);
      sum = sum + share * at::matmul(inner, weights[index + 2].t());
    }
    return sum;
  }

  std::vector<GatedLinears> experts_;
  std::vector<at::Tensor> weights_;
  at::Tensor hidden_;
  Routing routing_;
  std::map<size_t, int64_t> rows_;
};

std::vector<at::Tensor> InDouble(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> wide;
  for (const at::Tensor& tensor : tensors) wide.push_back(tensor.to(at::kDouble));
  return wide;
}

TEST_F(ExpertsTest, AreTheWeightedSumOfTheChosenOnes) {
  const at::Tensor output = ApplyExperts(experts_, Activation::kSilu, hidden_, routing_, Apply());
  const at::Tensor expected =
      Oracle(hidden_.to(at::kDouble), routing_.weights.to(at::kDouble), InDouble(weights_));
  EXPECT_EQ(output.scalar_type(), at::kFloat);
  EXPECT_LT((output - expected).abs().max().item<double>(), 1e-5);
}

TEST_F(ExpertsTest, EachLinearSeesItsRowsOnceAndUnusedOnesAreNotCalled) {
  ApplyExperts(experts_, Activation::kSilu, hidden_, routing_, Apply());
  EXPECT_THAT(rows_, ElementsAre(Pair(0, 5), Pair(1, 5), Pair(2, 5), Pair(3, 4), Pair(4, 4),
                                 Pair(5, 4), Pair(9, 5), Pair(10, 5), Pair(11, 5)));
}

TEST_F(ExpertsTest, GateAndUpSeeOneTensor) {
  at::Tensor last;
  int64_t shared = 0;
  ApplyExperts(experts_, Activation::kSilu, hidden_, routing_,
               [&](size_t index, const at::Tensor& input) {
                 if (index % 3 == 1 && input.is_same(last)) ++shared;
                 last = input;
                 return at::linear(input, weights_[index]);
               });
  EXPECT_EQ(shared, 3);
}

TEST_F(ExpertsTest, GradientsAreThoseOfTheDefinition) {
  std::vector<at::Tensor> leaves = {hidden_, routing_.weights};
  leaves.insert(leaves.end(), weights_.begin(), weights_.end());
  for (at::Tensor& leaf : leaves) leaf.set_requires_grad(true);
  const at::Tensor direction = at::randn({kTokens, kHidden});
  const auto gradients = [&](const at::Tensor& output, const std::vector<at::Tensor>& of) {
    return torch::autograd::grad({output}, of, {direction.to(output.scalar_type())}, false, false,
                                 /*allow_unused=*/true);
  };
  const auto actual =
      gradients(ApplyExperts(experts_, Activation::kSilu, hidden_, routing_, Apply()), leaves);
  std::vector<at::Tensor> wide;
  {
    const at::NoGradGuard no_grad;
    wide = InDouble(leaves);
  }
  for (at::Tensor& leaf : wide) leaf.set_requires_grad(true);
  const auto expected = gradients(Oracle(wide[0], wide[1], {wide.begin() + 2, wide.end()}), wide);
  for (size_t i = 0; i < leaves.size(); ++i) {
    SCOPED_TRACE(i);
    const bool unused = i >= 2 && (i - 2) / 3 == 2;
    ASSERT_EQ(actual[i].defined(), !unused);
    if (unused) continue;
    EXPECT_LT((actual[i] - expected[i]).abs().max().item<double>(), 2e-5);
  }
}

TEST_F(ExpertsTest, HalfPrecisionStatesKeepTheirDtype) {
  for (at::Tensor& weight : weights_) weight = weight.to(at::kBFloat16);
  const at::Tensor hidden = hidden_.to(at::kBFloat16);
  const at::Tensor output = ApplyExperts(experts_, Activation::kSilu, hidden, routing_, Apply());
  const at::Tensor expected =
      Oracle(hidden.to(at::kDouble), routing_.weights.to(at::kDouble), InDouble(weights_));
  EXPECT_EQ(output.scalar_type(), at::kBFloat16);
  EXPECT_LT((output.to(at::kDouble) - expected).abs().max().item<double>(),
            0.02 * expected.abs().max().item<double>());
}

}  // namespace
}  // namespace ptq
