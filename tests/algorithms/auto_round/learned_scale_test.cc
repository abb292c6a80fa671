// Tuning a block by the learned-scale recipe.
#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <limits>
#include <vector>

#include "algorithms/auto_round/auto_round.h"
#include "algorithms/rtn/opt_rtn.h"
#include "algorithms/rtn/rtn.h"
#include "tests/algorithms/auto_round/tiny_block.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::ptq::testing::SameRecords;
using ::ptq::testing::StatusIs;
using ::ptq::testing::TinyBlock;
using ::ptq::testing::TinyCase;
using ::testing::_;
using ::testing::HasSubstr;
using ::testing::SizeIs;

absl::StatusOr<QuantizedBlock> Tune(TinyCase& input, int64_t iterations,
                                    AutoRoundMethod method = AutoRoundMethod::kLearnedScale) {
  AutoRoundOptions options;
  options.method = method;
  options.iterations = iterations;
  options.batch_size = 4;
  return AutoRoundBlockQuantizer(at::kBFloat16, options).QuantizeBlock(input.Request());
}

absl::StatusOr<QuantizedBlock> OptRtn(TinyCase& input) {
  return OptRtnBlockQuantizer(at::kBFloat16).QuantizeBlock(input.Request());
}

at::Tensor RandomFisher(int64_t width) {
  const at::Tensor root = at::randn({width, 3 * width}) * at::exp(at::randn({width, 1}));
  return root.mm(root.t());
}

TEST(LearnedScale, ZeroIterationsAreOptRtn) {
  TinyCase input;
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock tuned, Tune(input, 0));
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock start, OptRtn(input));
  EXPECT_TRUE(SameRecords(tuned, start));
  EXPECT_FALSE(tuned.loss_first.has_value());
  EXPECT_EQ(tuned.linears[0]->fallback_reason, "");
}

TEST(LearnedScale, BeatsThePapersRecipeInATenthOfItsSteps) {
  for (const bool symmetric : {true, false}) {
    TinyCase input;
    for (auto& scheme : input.schemes) scheme->symmetric = symmetric;
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock tuned, Tune(input, 20));
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock start, OptRtn(input));
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock paper, Tune(input, 200, AutoRoundMethod::kPaper));
    EXPECT_LT(input.Loss(tuned), 0.7 * input.Loss(start));
    EXPECT_LT(input.Loss(tuned), 1.05 * input.Loss(paper));
    ASSERT_THAT(tuned.loss_curve, SizeIs(20));
    EXPECT_EQ(*tuned.loss_first, tuned.loss_curve.front());
    EXPECT_GT(tuned.search_seconds, 0);
  }
}

// What the metric weighs most is what gets better.
TEST(LearnedScale, FollowsTheFisherMetric) {
  TinyCase plain;
  TinyCase weighted;
  // Errors of channels 0..3 matter, the others hardly do.
  at::Tensor diagonal = at::full({32}, 1e-3);
  diagonal.narrow(0, 0, 4).fill_(1.0);
  weighted.observed.fisher = diagonal.diag();
  weighted.observed.fisher_tokens = 1 << 20;
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock without, Tune(plain, 40));
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock with, Tune(weighted, 40));
  const auto error = [](const TinyCase& input, const QuantizedBlock& quantized) {
    const at::Tensor output = input.block.Forward(
        input.inputs.quantized, input.rotary, [&](size_t index, const at::Tensor& x) {
          return ApplyLinear(input.block.linears()[index],
                             Dequantize(quantized.linears[index]->weight).to(at::kFloat), x);
        });
    return (output - input.observed.targets).narrow(-1, 0, 4).square().mean().item<double>();
  };
  EXPECT_LT(error(weighted, with), 0.7 * error(plain, without));
}

TEST(LearnedScale, SameSeedSameBytes) {
  TinyCase input;
  input.observed.fisher = RandomFisher(32);
  input.observed.fisher_tokens = 1 << 20;
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock first, Tune(input, 15));
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock second, Tune(input, 15));
  EXPECT_TRUE(SameRecords(first, second));
  EXPECT_EQ(first.loss_curve, second.loss_curve);
  input.seed = 43;
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock other, Tune(input, 15));
  EXPECT_FALSE(SameRecords(first, other));
}

// Micro-batches change nothing but the rounding of sums, whether they divide the batch or not.
TEST(LearnedScale, MicroBatchesTuneLikeTheBatch) {
  for (const AutoRoundMethod method : {AutoRoundMethod::kLearnedScale, AutoRoundMethod::kPaper}) {
    TinyCase input;
    if (method == AutoRoundMethod::kLearnedScale) {
      input.observed.fisher = RandomFisher(32);
      input.observed.fisher_tokens = 1 << 20;
    }
    const auto tune = [&](int64_t micro_batch) {
      AutoRoundOptions options;
      options.method = method;
      options.iterations = 6;
      options.batch_size = 8;
      options.micro_batch = micro_batch;
      return AutoRoundBlockQuantizer(at::kBFloat16, options).QuantizeBlock(input.Request());
    };
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock whole, tune(0));
    for (const int64_t micro_batch : {8, 100}) {
      PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock same, tune(micro_batch));
      EXPECT_TRUE(SameRecords(whole, same));
      EXPECT_EQ(whole.loss_curve, same.loss_curve);
    }
    for (const int64_t micro_batch : {1, 3, 4}) {
      PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock parts, tune(micro_batch));
      ASSERT_THAT(parts.loss_curve, SizeIs(6));
      // A rounding error of a gradient near zero moves a code by a whole step.
      EXPECT_FLOAT_EQ(parts.loss_curve[0], whole.loss_curve[0]) << micro_batch;
      for (size_t step = 1; step < 6; ++step) {
        EXPECT_NEAR(parts.loss_curve[step], whole.loss_curve[step], 0.02 * whole.loss_curve[step])
            << micro_batch;
      }
    }
  }
}

TEST(LearnedScale, RefusesANegativeMicroBatch) {
  TinyCase input;
  AutoRoundOptions options;
  options.micro_batch = -1;
  EXPECT_THAT(AutoRoundBlockQuantizer(at::kBFloat16, options).QuantizeBlock(input.Request()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("micro_batch")));
}

// A column that no activation reaches keeps the codes of the search, though Adam divides by the
// size of gradients.
TEST(LearnedScale, DeadColumnsStay) {
  for (const double activation : {0.0, 1e-12}) {
    TinyCase input;
    input.inputs.quantized = input.inputs.quantized.clone();
    input.inputs.quantized.select(-1, 3).fill_(activation);
    LinearObserver observer(input.block);
    input.block.Forward(input.inputs.quantized, input.rotary, observer.Observe());
    input.observed.statistics = observer.Finish();
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock tuned, Tune(input, 20));
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock start, OptRtn(input));
    for (const size_t index : {TinyBlock::kGate, TinyBlock::kUp}) {
      const at::Tensor codes = tuned.linears[index]->weight.int_data;
      const at::Tensor before = start.linears[index]->weight.int_data;
      EXPECT_TRUE(codes.select(1, 3).equal(before.select(1, 3))) << activation;
      EXPECT_FALSE(codes.equal(before));
    }
  }
}

TEST(LearnedScale, ALayerThatFewTokensReachKeepsItsSearchedStart) {
  TinyCase input(at::kCPU, at::kFloat, /*samples=*/32, /*length=*/12);
  input.observed.statistics[TinyBlock::kDown].tokens = 255;
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock tuned, Tune(input, 10));
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock start, OptRtn(input));
  EXPECT_THAT(tuned.linears[TinyBlock::kDown]->fallback_reason, HasSubstr("fewer than 256"));
  EXPECT_TRUE(at::equal(tuned.linears[TinyBlock::kDown]->weight.int_data,
                        start.linears[TinyBlock::kDown]->weight.int_data));
  EXPECT_EQ(tuned.linears[TinyBlock::kGate]->fallback_reason, "");
  EXPECT_FALSE(at::equal(tuned.linears[TinyBlock::kGate]->weight.int_data,
                         start.linears[TinyBlock::kGate]->weight.int_data));
  for (LinearStatistics& statistics : input.observed.statistics) statistics.tokens = 3;
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock none, Tune(input, 10));
  EXPECT_TRUE(SameRecords(none, start));
}

TEST(LearnedScale, ALossThatIsNoNumberFallsBackToTheStart) {
  TinyCase input;
  input.observed.targets =
      at::full_like(input.observed.targets, std::numeric_limits<float>::quiet_NaN());
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock tuned, Tune(input, 3));
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock start, OptRtn(input));
  EXPECT_TRUE(SameRecords(tuned, start));
  EXPECT_THAT(tuned.linears[0]->fallback_reason, HasSubstr("opt-rtn"));
}

TEST(LearnedScale, NeedsStatisticsAndStopsWhenCancelled) {
  TinyCase input;
  input.progress = [&](double) { input.cancel.Cancel(); };
  EXPECT_THAT(Tune(input, 100000), StatusIs(absl::StatusCode::kCancelled, _));
  TinyCase unobserved;
  unobserved.observed.statistics.clear();
  EXPECT_THAT(Tune(unobserved, 5),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("auto-round")));
}

}  // namespace
}  // namespace ptq
