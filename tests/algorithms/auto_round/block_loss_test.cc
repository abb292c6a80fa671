// The Fisher loss and its gradient against autograd through its definition in float64.
#include "algorithms/auto_round/block_loss.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>

#include "algorithms/auto_round/auto_round.h"

namespace ptq {
namespace {

constexpr int64_t kSamples = 6;
constexpr int64_t kLength = 9;
constexpr int64_t kWidth = 24;

struct Case {
  Case() {
    at::manual_seed(8);
    // Tokens of very different size, as the first ones of a sequence are in large models.
    inputs.targets =
        at::randn({kSamples, kLength, kWidth}) * at::exp(at::randn({kSamples, kLength, 1}));
    inputs.mask = at::ones({kSamples, kLength});
    inputs.mask.select(1, kLength - 1).zero_();
    inputs.mask[4].narrow(0, 2, 3).zero_();
    inputs.order = at::tensor({1, 3, 4, 0}, at::kLong).view({2, 2});
    inputs.step = at::ones({1}, at::kLong);
    inputs.loss_curve = at::full({2}, -1.0F);
    output = inputs.targets.index_select(0, rows()) + 0.1 * at::randn({2, kLength, kWidth});
    const at::Tensor root = at::randn({kWidth, 2 * kWidth});
    fisher = root.mm(root.t()) * 1e-7;
  }
  at::Tensor rows() const { return inputs.order[1]; }

  // mean(w d'F'd) by its definition.
  at::Tensor Loss(const at::Tensor& y, double weight) const {
    const at::Tensor f = fisher.to(at::kDouble);
    const at::Tensor metric =
        weight * f / f.diagonal().mean() + (1 - weight) * at::eye(kWidth, at::kDouble);
    const at::Tensor mask = inputs.mask.to(at::kDouble);
    at::Tensor token = 1.0 / inputs.targets.to(at::kDouble).square().mean(-1);
    token = token / token.masked_select(mask.ne(0)).mean();
    const at::Tensor m = mask.index_select(0, rows());
    const at::Tensor d =
        (y - inputs.targets.index_select(0, rows()).to(at::kDouble)) * m.unsqueeze(-1);
    const at::Tensor per_token =
        at::matmul(d, metric).mul(d).sum(-1) * token.index_select(0, rows());
    return per_token.sum() / (m.sum() * kWidth);
  }

  LossInputs inputs;
  at::Tensor output;
  at::Tensor fisher;
};

TEST(FisherLoss, LossAndGradientAreThoseOfAutograd) {
  for (const double weight : {0.9, 0.5, 0.0}) {
    Case c;
    FisherLoss loss(c.inputs, c.fisher, weight);
    loss.gradient_scale = 0.25F;
    const at::Tensor gradient = loss.Gradient(c.output, 0);
    const at::Tensor y = c.output.to(at::kDouble).set_requires_grad(true);
    const at::Tensor expected = c.Loss(y, weight);
    EXPECT_NEAR(c.inputs.loss_curve[1].item<double>(), expected.item<double>(),
                1e-5 * expected.item<double>());
    EXPECT_EQ(c.inputs.loss_curve[0].item<float>(), -1.0F);
    const at::Tensor reference = torch::autograd::grad({expected}, {y})[0];
    const double scale = gradient.norm().item<double>() / reference.norm().item<double>();
    const double difference = (gradient.to(at::kDouble) / scale - reference).norm().item<double>();
    EXPECT_LT(difference, 1e-5 * reference.norm().item<double>());
    // gradient_scale · p w for a loss whose gradient is 2 p w / numel.
    EXPECT_NEAR(scale,
                0.25 * c.inputs.mask.index_select(0, c.rows()).sum().item<double>() * kWidth / 2,
                1e-4 * scale);
  }
}

TEST(FisherLoss, MaskedTokensDoNotCountWhateverTheyAre) {
  Case c;
  FisherLoss loss(c.inputs, c.fisher, 0.9);
  const at::Tensor before = loss.Gradient(c.output, 0);
  Case poisoned;
  const at::Tensor masked = poisoned.inputs.mask.eq(0).unsqueeze(-1);
  poisoned.inputs.targets =
      poisoned.inputs.targets.masked_fill(masked, std::numeric_limits<float>::quiet_NaN());
  FisherLoss other(poisoned.inputs, poisoned.fisher, 0.9);
  EXPECT_TRUE(other.Gradient(poisoned.output, 0).equal(before));
  EXPECT_TRUE(poisoned.inputs.loss_curve.equal(c.inputs.loss_curve));
}

TEST(FisherLoss, ZeroTargetsKeepFiniteWeights) {
  Case c;
  c.inputs.targets[1].zero_();
  FisherLoss loss(c.inputs, c.fisher, 0.9);
  c.inputs.step.zero_();  // samples 1 and 3
  EXPECT_TRUE(loss.Gradient(c.output, 0).isfinite().all().item<bool>());
  EXPECT_TRUE(std::isfinite(c.inputs.loss_curve[0].item<float>()));
}

// Whatever the micro-batches: the gradient of each sample alone, the loss of all.
TEST(FisherLoss, MicroBatchesGiveTheBatchsLossAndGradient) {
  Case whole;
  FisherLoss loss(whole.inputs, whole.fisher, 0.9);
  const at::Tensor gradient = loss.Gradient(whole.output, 0);
  Case parts;
  // Targets elsewhere, as a BatchRing has them.
  parts.inputs.staged_targets = parts.inputs.targets.index_select(0, parts.rows().flip(0));
  parts.inputs.slots = at::tensor({0, 0, 1, 0}, at::kLong).view({2, 2});
  FisherLoss part_loss(parts.inputs, parts.fisher, 0.9);
  for (int64_t sample = 0; sample < 2; ++sample) {
    const at::Tensor part = part_loss.Gradient(parts.output.narrow(0, sample, 1), sample);
    EXPECT_TRUE(part.allclose(gradient.narrow(0, sample, 1), 1e-5, 0)) << sample;
    const float curve = parts.inputs.loss_curve[1].item<float>();
    if (sample == 0) EXPECT_EQ(curve, -1.0F) << "written before the batch is complete";
  }
  EXPECT_FLOAT_EQ(parts.inputs.loss_curve[1].item<float>(),
                  whole.inputs.loss_curve[1].item<float>());
}

TEST(SquaredErrorLoss, MicroBatchesGiveTheBatchsBits) {
  Case whole;
  SquaredErrorLoss loss(whole.inputs);
  const at::Tensor gradient = loss.Gradient(whole.output, 0);
  Case parts;
  SquaredErrorLoss part_loss(parts.inputs);
  for (int64_t sample = 0; sample < 2; ++sample) {
    EXPECT_EQ(part_loss.best_step().item<int64_t>(), -1);
    EXPECT_TRUE(part_loss.Gradient(parts.output.narrow(0, sample, 1), sample)
                    .equal(gradient.narrow(0, sample, 1)));
  }
  EXPECT_TRUE(parts.inputs.loss_curve.equal(whole.inputs.loss_curve));
  EXPECT_EQ(part_loss.best_step().item<int64_t>(), 1);
}

TEST(FisherWeight, IsLowerWhereTokensAreFew) {
  EXPECT_EQ(FisherWeight(16384, 1024), 0.9);
  EXPECT_EQ(FisherWeight(4096, 1024), 0.9);
  EXPECT_EQ(FisherWeight(4095, 1024), 0.5);
}

}  // namespace
}  // namespace ptq
