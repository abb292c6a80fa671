// Tuning a block of routed experts, which see different batches, few tokens, or none.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "algorithms/auto_round/auto_round.h"
#include "algorithms/auto_round/autograd_pass.h"
#include "algorithms/rtn/opt_rtn.h"
#include "algorithms/rtn/rtn.h"
#include "observers/block_inputs.h"
#include "tests/testing/routed_block.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::ptq::testing::RoutedBlock;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr int64_t kLength = 96;
// Expert 0 in many samples, expert 2 not before the fifth one, expert 3 in one alone, expert 1
// never.
const std::vector<int64_t> kExpertOfSample = {0, 0, 0, 0, 2, 2, 2, 3};

class RoutedExpertsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const at::NoGradGuard no_grad;
    at::manual_seed(4);
    block_.emplace();
    inputs_.full_precision = RoutedBlock::Hidden(kExpertOfSample, kLength);
    inputs_.quantized = inputs_.full_precision;
    inputs_.token_mask =
        LastPositionMask(static_cast<int64_t>(kExpertOfSample.size()), kLength, at::kCPU);
    observed_.block = &*block_;
    observed_.rotary = &rotary_;
    observed_.inputs = &inputs_;
    LinearObserver observer(*block_);
    observed_.targets = block_->Forward(inputs_.full_precision, rotary_, observer.Observe());
    EXPECT_FALSE(observer.SawAll());
    observed_.statistics = observer.Finish();
    QuantizationScheme scheme;
    scheme.bits = 3;
    scheme.group_size = 16;
    schemes_.assign(block_->linears().size(), scheme);
  }

  absl::StatusOr<QuantizedBlock> Tune(AutoRoundMethod method) {
    AutoRoundOptions options;
    options.method = method;
    options.iterations = 100;
    options.batch_size = 4;  // no batch has all experts
    return AutoRoundBlockQuantizer(at::kBFloat16, options)
        .QuantizeBlock({.observed = observed_, .schemes = schemes_, .cancel = cancel_});
  }

  // Mean squared error of the tokens of one expert.
  double Loss(const QuantizedBlock& quantized, int64_t expert) const {
    const at::NoGradGuard no_grad;
    const at::Tensor output =
        block_->Forward(inputs_.quantized, rotary_, [&](size_t index, const at::Tensor& input) {
          return at::linear(
              input, Dequantize(quantized.linears[index]->weight, at::kBFloat16).to(at::kFloat));
        });
    double sum = 0;
    for (size_t sample = 0; sample < kExpertOfSample.size(); ++sample) {
      if (kExpertOfSample[sample] != expert) continue;
      const auto at = static_cast<int64_t>(sample);
      sum += (output[at] - observed_.targets[at]).square().mean().item<double>();
    }
    return sum;
  }

  std::optional<RoutedBlock> block_;
  RotaryTable rotary_;
  BlockInputs inputs_;
  ObservedBlock observed_;
  std::vector<std::optional<QuantizationScheme>> schemes_;
  CancellationToken cancel_;
};

TEST_F(RoutedExpertsTest, PaperTunesEveryExpertThatAnySampleReaches) {
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock tuned, Tune(AutoRoundMethod::kPaper));
  PTQ_ASSERT_OK_AND_ASSIGN(
      const QuantizedBlock rtn,
      RtnBlockQuantizer(at::kBFloat16)
          .QuantizeBlock({.observed = observed_, .schemes = schemes_, .cancel = cancel_}));
  for (const size_t reached : {0, 2, 3}) {
    EXPECT_EQ(tuned.linears[3 * reached]->fallback_reason, "") << reached;
  }
  EXPECT_FALSE(tuned.linears[6]->weight.int_data.equal(rtn.linears[6]->weight.int_data));
  EXPECT_LT(Loss(tuned, 0), Loss(rtn, 0));
  for (const size_t layer : {3, 4, 5}) {
    EXPECT_THAT(tuned.linears[layer]->fallback_reason,
                StartsWith("no calibration token reached this layer: opt-rtn"));
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedLinear uniform,
                             QuantizeUnreached(block_->linears()[layer].weight, at::kBFloat16,
                                               *schemes_[layer], cancel_));
    EXPECT_TRUE(tuned.linears[layer]->weight.int_data.equal(uniform.weight.int_data));
  }
}

TEST_F(RoutedExpertsTest, LearnedScalesNeedSomeTokens) {
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock tuned, Tune(AutoRoundMethod::kLearnedScale));
  PTQ_ASSERT_OK_AND_ASSIGN(
      const QuantizedBlock start,
      OptRtnBlockQuantizer(at::kBFloat16)
          .QuantizeBlock({.observed = observed_, .schemes = schemes_, .cancel = cancel_}));
  EXPECT_EQ(tuned.linears[0]->fallback_reason, "");
  EXPECT_EQ(tuned.linears[6]->fallback_reason, "");
  EXPECT_LT(Loss(tuned, 0), Loss(start, 0));
  EXPECT_LT(Loss(tuned, 2), Loss(start, 2));
  EXPECT_THAT(tuned.linears[3]->fallback_reason, StartsWith("no calibration token reached"));
  EXPECT_THAT(tuned.linears[9]->fallback_reason, HasSubstr("fewer than 256 calibration tokens"));
  EXPECT_TRUE(tuned.linears[9]->weight.int_data.equal(start.linears[9]->weight.int_data));
}

TEST_F(RoutedExpertsTest, SameSeedSameBytes) {
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock first, Tune(AutoRoundMethod::kLearnedScale));
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock second, Tune(AutoRoundMethod::kLearnedScale));
  for (size_t i = 0; i < first.linears.size(); ++i) {
    EXPECT_TRUE(first.linears[i]->weight.int_data.equal(second.linears[i]->weight.int_data));
  }
}

TEST_F(RoutedExpertsTest, AnExpertWithoutTokensInABatchHasAZeroGradient) {
  std::vector<at::Tensor> fixed;
  std::vector<SharedLinear> shared;
  for (size_t i = 0; i < block_->linears().size(); ++i) {
    fixed.push_back(block_->linears()[i].weight);
    SharedLinear& linear = shared.emplace_back();
    linear.members = {i};
    linear.rows = {fixed.back().size(0)};
    linear.in_features = fixed.back().size(1);
    linear.weight = fixed.back().clone();
  }
  AutogradPass pass(*block_, rotary_, fixed, shared);
  const at::Tensor output = pass.Forward(inputs_.quantized.narrow(0, 4, 1));  // expert 2 alone
  std::vector<at::Tensor> gradients(shared.size());
  pass.Backward(at::ones_like(output), [&](size_t index, const at::Tensor& gradient) {
    ASSERT_FALSE(gradients[index].defined()) << "called twice for " << index;
    gradients[index] = gradient;
  });
  for (size_t i = 0; i < gradients.size(); ++i) {
    ASSERT_TRUE(gradients[i].defined()) << i;
    EXPECT_EQ(gradients[i].sizes(), fixed[i].sizes());
    EXPECT_EQ(gradients[i].abs().max().item<float>() > 0, i / 3 == 2) << i;
  }
}

TEST_F(RoutedExpertsTest, ABatchThatReachesNothingThatIsTunedHasZeroGradients) {
  std::vector<at::Tensor> fixed;
  for (const Linear& linear : block_->linears()) fixed.push_back(linear.weight);
  SharedLinear last;
  last.members = {9};
  last.rows = {fixed[9].size(0)};
  last.in_features = fixed[9].size(1);
  last.weight = fixed[9].clone();
  std::vector<SharedLinear> shared = {last};
  AutogradPass pass(*block_, rotary_, fixed, shared);
  const at::Tensor output = pass.Forward(inputs_.quantized.narrow(0, 0, 2));
  int calls = 0;
  pass.Backward(at::ones_like(output), [&](size_t, const at::Tensor& gradient) {
    ++calls;
    EXPECT_EQ(gradient.abs().max().item<float>(), 0);
  });
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace ptq
