#include "algorithms/auto_round/auto_round.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "algorithms/rtn/rtn.h"
#include "tests/algorithms/auto_round/tiny_block.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::ptq::testing::SameRecords;
using ::ptq::testing::StatusIs;
using ::ptq::testing::TinyBlock;
using ::ptq::testing::TinyCase;
using ::testing::HasSubstr;
using ::testing::SizeIs;

AutoRoundOptions Options(int64_t iterations, int64_t batch = 4) {
  AutoRoundOptions options;
  options.iterations = iterations;
  options.batch_size = batch;
  return options;
}

absl::StatusOr<QuantizedBlock> Quantize(TinyCase& input, const AutoRoundOptions& options) {
  return AutoRoundBlockQuantizer(at::kBFloat16, options).QuantizeBlock(input.Request());
}

TEST(AutoRound, ZeroIterationsAreRtn) {
  TinyCase input;
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock tuned, Quantize(input, Options(0)));
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock rtn,
                           RtnBlockQuantizer(at::kBFloat16).QuantizeBlock(input.Request()));
  EXPECT_TRUE(SameRecords(tuned, rtn));
  EXPECT_FALSE(tuned.loss_first.has_value());
  EXPECT_EQ(tuned.linears[0]->fallback_reason, "");
}

TEST(AutoRound, FirstStepSeesRtn) {
  TinyCase input;
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock rtn,
                           RtnBlockQuantizer(at::kBFloat16).QuantizeBlock(input.Request()));
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock tuned, Quantize(input, Options(1, 16)));
  EXPECT_TRUE(SameRecords(tuned, rtn));
  EXPECT_NEAR(*tuned.loss_first, input.Loss(rtn), 1e-5 * *tuned.loss_first);
}

class AutoRoundSchemes : public ::testing::TestWithParam<std::tuple<bool, int64_t>> {};

TEST_P(AutoRoundSchemes, LowersTheBlocksError) {
  TinyCase input;
  for (auto& scheme : input.schemes) {
    scheme->symmetric = std::get<0>(GetParam());
    scheme->group_size = std::get<1>(GetParam());
  }
  // All samples in each batch: losses of all steps are comparable, and the best one's is the
  // result's.
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock tuned, Quantize(input, Options(60, 16)));
  ASSERT_THAT(tuned.loss_curve, SizeIs(60));
  EXPECT_EQ(*tuned.loss_first, tuned.loss_curve.front());
  EXPECT_EQ(*tuned.loss_best, *std::min_element(tuned.loss_curve.begin(), tuned.loss_curve.end()));
  EXPECT_LT(*tuned.loss_best, 0.85 * *tuned.loss_first);
  EXPECT_NEAR(input.Loss(tuned), *tuned.loss_best, 1e-4 * *tuned.loss_best)
      << "the records are not those of the best step";
}

INSTANTIATE_TEST_SUITE_P(
    Schemes, AutoRoundSchemes,
    ::testing::Combine(::testing::Bool(), ::testing::Values(int64_t{16}, int64_t{-1}, int64_t{0})));

TEST(AutoRound, BestLossIsNeverAboveTheFirst) {
  TinyCase input;
  for (const uint64_t seed : {1, 2, 3}) {
    input.seed = seed;
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock tuned, Quantize(input, Options(7, 2)));
    EXPECT_LE(*tuned.loss_best, *tuned.loss_first);
  }
}

TEST(AutoRound, SameSeedSameBytes) {
  TinyCase input;
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock first, Quantize(input, Options(20)));
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock second, Quantize(input, Options(20)));
  EXPECT_TRUE(SameRecords(first, second));
  EXPECT_EQ(first.loss_curve, second.loss_curve);
  input.seed = 43;
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock other, Quantize(input, Options(20)));
  EXPECT_FALSE(SameRecords(first, other));
}

TEST(AutoRound, MaskedTargetsChangeNothing) {
  TinyCase input;
  input.inputs.token_mask.select(0, 5).zero_();  // a whole sample
  input.inputs.token_mask[2].narrow(0, 0, 4).zero_();
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock before, Quantize(input, Options(20)));
  const at::Tensor masked = (input.inputs.token_mask == 0).unsqueeze(-1);
  input.observed.targets = input.observed.targets.masked_fill(masked, 1e4);
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock noise, Quantize(input, Options(20)));
  EXPECT_TRUE(SameRecords(before, noise));
  EXPECT_EQ(before.loss_curve, noise.loss_curve);
  input.observed.targets =
      input.observed.targets.masked_fill(masked, std::numeric_limits<float>::quiet_NaN());
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock nan, Quantize(input, Options(20)));
  EXPECT_TRUE(SameRecords(before, nan));
}

TEST(AutoRound, UnmaskedTargetsChangeTheResult) {
  TinyCase input;
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock before, Quantize(input, Options(20)));
  input.observed.targets = input.observed.targets + 0.5 * at::randn_like(input.observed.targets);
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock after, Quantize(input, Options(20)));
  EXPECT_FALSE(SameRecords(before, after));
}

TEST(AutoRound, LayersMayDifferAndBeLeftAlone) {
  TinyCase input;
  input.schemes[TinyBlock::kGate].reset();
  input.schemes[TinyBlock::kUp]->bits = 8;
  input.schemes[TinyBlock::kUp]->symmetric = false;
  input.schemes[TinyBlock::kDown]->group_size = QuantizationScheme::kPerChannel;
  const at::Tensor gate = input.block.linears()[TinyBlock::kGate].weight.clone();
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock tuned, Quantize(input, Options(30, 16)));
  EXPECT_FALSE(tuned.linears[TinyBlock::kGate].has_value());
  EXPECT_TRUE(at::equal(gate, input.block.linears()[TinyBlock::kGate].weight));
  EXPECT_EQ(tuned.linears[TinyBlock::kUp]->weight.bits, 8);
  EXPECT_EQ(tuned.linears[TinyBlock::kUp]->weight.mapping_type, MappingType::kAsymmetric);
  EXPECT_EQ(tuned.linears[TinyBlock::kDown]->weight.scale.size(1), 1);
  EXPECT_NEAR(input.Loss(tuned), *tuned.loss_best, 1e-4 * *tuned.loss_best);
}

TEST(AutoRound, NothingToQuantizeIsNothing) {
  TinyCase input;
  input.schemes.assign(input.schemes.size(), std::nullopt);
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock tuned, Quantize(input, Options(5)));
  EXPECT_THAT(tuned.linears, SizeIs(3));
  EXPECT_FALSE(tuned.loss_best.has_value());
}

TEST(AutoRound, FewerSamplesThanABatchAreOneBatch) {
  TinyCase input;
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock all, Quantize(input, Options(5, 16)));
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock more, Quantize(input, Options(5, 1000)));
  EXPECT_TRUE(SameRecords(all, more));
}

TEST(AutoRound, ALossThatIsNoNumberFallsBackToRtn) {
  TinyCase input;
  input.observed.targets.fill_(std::numeric_limits<float>::quiet_NaN());
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock tuned, Quantize(input, Options(5)));
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock rtn,
                           RtnBlockQuantizer(at::kBFloat16).QuantizeBlock(input.Request()));
  EXPECT_TRUE(SameRecords(tuned, rtn));
  EXPECT_THAT(tuned.linears[1]->fallback_reason, HasSubstr("not a number"));
  EXPECT_FALSE(tuned.loss_best.has_value());
}

TEST(AutoRound, OneBadBatchIsNotTheBest) {
  TinyCase input;
  input.observed.targets[3].fill_(std::numeric_limits<float>::quiet_NaN());
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock tuned, Quantize(input, Options(16, 4)));
  EXPECT_EQ(std::count_if(tuned.loss_curve.begin(), tuned.loss_curve.end(),
                          [](float loss) { return std::isnan(loss); }),
            4);  // sample 3 is in one batch of each of four epochs
  ASSERT_TRUE(tuned.loss_best.has_value());
  EXPECT_TRUE(std::isfinite(*tuned.loss_best));
  EXPECT_EQ(tuned.linears[1]->fallback_reason, "");
}

TEST(AutoRound, ComputesInHalfPrecision) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    TinyCase input(at::kCPU, dtype);
    PTQ_ASSERT_OK_AND_ASSIGN(
        const QuantizedBlock tuned,
        AutoRoundBlockQuantizer(dtype, Options(40, 16)).QuantizeBlock(input.Request()));
    EXPECT_LT(*tuned.loss_best, 0.85 * *tuned.loss_first) << dtype;
  }
}

// The gradient of a float16 model must neither vanish nor overflow, however small or large the
// loss.
TEST(AutoRound, HalfPrecisionWorksAtAnyScaleOfTheLoss) {
  for (const double scale : {1.0 / 64, 16.0}) {
    TinyCase input(at::kCPU, at::kHalf);
    input.block.mutable_linears()[TinyBlock::kDown].weight.mul_(scale);
    input.observed.targets =
        input.block.Forward(input.inputs.full_precision, input.rotary).contiguous();
    input.inputs.quantized = input.inputs.full_precision;
    PTQ_ASSERT_OK_AND_ASSIGN(
        const QuantizedBlock tuned,
        AutoRoundBlockQuantizer(at::kHalf, Options(40, 16)).QuantizeBlock(input.Request()));
    EXPECT_LT(*tuned.loss_best, 0.85 * *tuned.loss_first) << scale;
  }
}

TEST(AutoRound, StopsWhenCancelled) {
  TinyCase input;
  int calls = 0;
  input.progress = [&](double) {
    if (++calls == 3) input.cancel.Cancel();
  };
  EXPECT_THAT(Quantize(input, Options(1000)),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr("")));
  EXPECT_EQ(calls, 3);
}

TEST(AutoRound, ReportsProgress) {
  TinyCase input;
  std::vector<double> fractions;
  input.progress = [&](double fraction) { fractions.push_back(fraction); };
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock tuned, Quantize(input, Options(10)));
  EXPECT_TRUE(std::is_sorted(fractions.begin(), fractions.end()));
  EXPECT_DOUBLE_EQ(fractions.back(), 1.0);
}

TEST(AutoRound, RefusesWhatItCannotDo) {
  TinyCase input;
  EXPECT_THAT(Quantize(input, Options(-1)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("iterations")));
  EXPECT_THAT(Quantize(input, Options(1, 0)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("batch_size")));
  input.schemes[TinyBlock::kUp]->group_size = 24;
  EXPECT_THAT(Quantize(input, Options(1)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("mlp.up_proj")));
  input.schemes[TinyBlock::kUp]->group_size = 16;
  input.schemes[TinyBlock::kUp]->scale_rule = ScaleRule::kTorchao;
  EXPECT_THAT(Quantize(input, Options(1)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("mlp.up_proj")));
  input.schemes[TinyBlock::kUp]->scale_rule = ScaleRule::kFullRange;
  input.observed.inputs = nullptr;
  EXPECT_THAT(Quantize(input, Options(1)),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("calibration")));
}

}  // namespace
}  // namespace ptq
