// Literals by the formulas of auto-round's rtn (int_sym, int_asym); quantizer_parity_test.py
// compares random weights with the peer itself.
#include "algorithms/rtn/rtn.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "algorithms/rtn/full_range.h"
#include "tests/algorithms/observed_linear.h"
#include "tests/algorithms/tensor_literals.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::Matrix;
using testing::ObservedLinears;
using testing::Random;
using testing::StatusIs;
using testing::Values;

constexpr double kSmallestScale = 1.0013580322265625e-05;  // 1e-5 in float16

QuantizationScheme Scheme(int bits, int64_t group_size, bool symmetric = true) {
  return {.bits = bits, .group_size = group_size, .symmetric = symmetric};
}

TEST(QuantizeRtnTest, LargerSideLandsOnTheLowestCode) {
  const AffineQuantizedTensor record =
      QuantizeRtn(Matrix(2, {-1, .5, 2, 3, -3, 1, .1875, -.1875}), at::kFloat, Scheme(4, 4));
  EXPECT_THAT(Values(record.scale), ElementsAre(-0.375, 0.375));
  EXPECT_THAT(Values(record.int_data), ElementsAre(3, -1, -5, -8, -8, 3, 0, 0));
  EXPECT_THAT(Values(record.zero_point), ElementsAre(0, 0));
}

TEST(QuantizeRtnTest, EqualExtremesCountAsPositiveAndTiesRoundToEven) {
  const AffineQuantizedTensor record =
      QuantizeRtn(Matrix(2, {-2, 2, 1, -.125, .375, -.625, 2, 0}), at::kFloat, Scheme(4, 4));
  EXPECT_THAT(Values(record.scale), ElementsAre(-0.25, -0.25));
  // -2 / -.25 = 8 is clamped; .5, -1.5 and 2.5 are ties.
  EXPECT_THAT(Values(record.int_data), ElementsAre(7, -8, -4, 0, -2, 2, -8, 0));
}

TEST(QuantizeRtnTest, ConstantAndZeroRows) {
  const AffineQuantizedTensor symmetric =
      QuantizeRtn(Matrix(2, {.7, .7, .7, .7, 0, 0, 0, 0}), at::kFloat, Scheme(4, 4));
  EXPECT_THAT(Values(symmetric.scale), ElementsAre(-0.0875244140625, kSmallestScale));
  EXPECT_THAT(Values(symmetric.int_data), ElementsAre(-8, -8, -8, -8, 0, 0, 0, 0));
  const AffineQuantizedTensor asymmetric = QuantizeRtn(
      Matrix(3, {.7, .7, .7, .7, 0, 0, 0, 0, -.7, -.7, -.7, -.7}), at::kFloat, Scheme(4, 4, false));
  EXPECT_THAT(Values(asymmetric.scale),
              ElementsAre(0.046661376953125, kSmallestScale, 0.046661376953125));
  EXPECT_THAT(Values(asymmetric.zero_point), ElementsAre(-8, -8, 7));
  EXPECT_THAT(Values(asymmetric.int_data), ElementsAre(7, 7, 7, 7, -8, -8, -8, -8, -8, -8, -8, -8));
}

TEST(QuantizeRtnTest, AsymmetricUsesTheWholeRange) {
  const AffineQuantizedTensor record =
      QuantizeRtn(Matrix(1, {-1, .5, 2, 3}), at::kFloat, Scheme(4, 4, false));
  EXPECT_THAT(Values(record.scale), ElementsAre(0.2666015625));
  EXPECT_THAT(Values(record.zero_point), ElementsAre(-4));
  // 2 over the rounded scale is 7.502: code 8, where the unrounded scale would have given 7.
  EXPECT_THAT(Values(record.int_data), ElementsAre(-8, -2, 4, 7));
  EXPECT_EQ(record.mapping_type, MappingType::kAsymmetric);
}

TEST(QuantizeRtnTest, SmallScalesKeepTheirSignAtTheFloor) {
  const AffineQuantizedTensor record =
      QuantizeRtn(Matrix(2, {1e-6, 0, 0, -1e-7, -1e-6, 0, 0, 1e-7}), at::kFloat, Scheme(4, 4));
  EXPECT_THAT(Values(record.scale), ElementsAre(-kSmallestScale, kSmallestScale));
}

TEST(QuantizeRtnTest, HugeWeightsSaturateTheScale) {
  const AffineQuantizedTensor record =
      QuantizeRtn(Matrix(1, {1e30, -1, 0, 1}), at::kFloat, Scheme(2, 4));
  EXPECT_THAT(Values(record.scale), ElementsAre(-65504));
  EXPECT_THAT(Values(record.int_data), ElementsAre(-2, 0, 0, 0));
}

TEST(QuantizeRtnTest, ChannelAndTensorGroups) {
  const at::Tensor weight = Matrix(2, {-1, .5, 2, 4, -8, 1, 2, 3});
  const AffineQuantizedTensor channel =
      QuantizeRtn(weight, at::kFloat, Scheme(4, QuantizationScheme::kPerChannel));
  EXPECT_THAT(channel.block_size, ElementsAre(1, 4));
  EXPECT_THAT(Values(channel.scale), ElementsAre(-0.5, 1));
  const AffineQuantizedTensor tensor =
      QuantizeRtn(weight, at::kFloat, Scheme(4, QuantizationScheme::kPerTensor));
  EXPECT_THAT(tensor.block_size, ElementsAre(2, 4));
  EXPECT_EQ(tensor.scale.sizes(), (at::IntArrayRef{1, 1}));
  EXPECT_THAT(Values(tensor.scale), ElementsAre(1));
  EXPECT_THAT(Values(tensor.int_data), ElementsAre(-1, 0, 2, 4, -8, 1, 2, 3));
}

TEST(QuantizeRtnTest, RecordSaysHowItWasMade) {
  const AffineQuantizedTensor record =
      QuantizeRtn(Random({4, 64}, 1), at::kBFloat16, Scheme(3, 32));
  EXPECT_EQ(record.int_data.scalar_type(), at::kChar);
  EXPECT_EQ(record.scale.scalar_type(), at::kHalf);
  EXPECT_EQ(record.zero_point.scalar_type(), at::kInt);
  EXPECT_EQ(record.scale.sizes(), (at::IntArrayRef{4, 2}));
  EXPECT_EQ(record.quant_min, -4);
  EXPECT_EQ(record.quant_max, 3);
  EXPECT_EQ(record.bits, 3);
  EXPECT_EQ(record.original_dtype, at::kBFloat16);
  EXPECT_EQ(record.mapping_type, MappingType::kSymmetric);
}

TEST(QuantizeRtnTest, WideningTheWeightChangesNothing) {
  const at::Tensor weight = Random({8, 128}, 2).to(at::kBFloat16);
  for (const ScaleRule rule : {ScaleRule::kFullRange, ScaleRule::kTorchao}) {
    for (const bool symmetric : {true, false}) {
      SCOPED_TRACE(::testing::Message() << static_cast<int>(rule) << symmetric);
      QuantizationScheme scheme = Scheme(4, 32, symmetric);
      scheme.scale_rule = rule;
      const AffineQuantizedTensor stored = QuantizeRtn(weight, at::kBFloat16, scheme);
      const AffineQuantizedTensor widened =
          QuantizeRtn(weight.to(at::kFloat), at::kBFloat16, scheme);
      EXPECT_TRUE(stored.int_data.equal(widened.int_data));
      EXPECT_TRUE(stored.scale.equal(widened.scale));
      EXPECT_TRUE(stored.zero_point.equal(widened.zero_point));
    }
  }
}

TEST(QuantizeRtnTest, TorchaoRuleUsesTheWeightsDtype) {
  QuantizationScheme scheme = Scheme(4, 4);
  scheme.scale_rule = ScaleRule::kTorchao;
  const AffineQuantizedTensor record =
      QuantizeRtn(Matrix(1, {-1, .5, 2, 3}), at::kBFloat16, scheme);
  EXPECT_EQ(record.scale.scalar_type(), at::kBFloat16);
  EXPECT_THAT(Values(record.scale), ElementsAre(0.400390625));
  EXPECT_THAT(Values(record.int_data), ElementsAre(-2, 1, 5, 7));
}

struct RoundTripCase {
  int bits;
  int64_t group_size;
  bool symmetric;
};

class QuantizeRtnRoundTripTest : public ::testing::TestWithParam<RoundTripCase> {};

TEST_P(QuantizeRtnRoundTripTest, ErrorIsAtMostHalfAStepAndCodesAreStable) {
  const auto [bits, group_size, symmetric] = GetParam();
  const QuantizationScheme scheme = Scheme(bits, group_size, symmetric);
  // More rows than one piece of RoundToCodes takes.
  const at::Tensor weight = Random({70, 16384}, 3);
  const AffineQuantizedTensor record = QuantizeRtn(weight, at::kFloat, scheme);
  EXPECT_GE(record.int_data.min().item<int>(), record.quant_min);
  EXPECT_LE(record.int_data.max().item<int>(), record.quant_max);
  const at::Tensor values = Dequantize(record);
  // Values beyond the highest code are clamped by up to one step when symmetric; by the scale's
  // rounding (2^-11 of up to 2^bits steps) when not.
  const auto [b0, b1] = record.block_size;
  const at::Tensor steps = ((values - weight).view({70 / b0, b0, 16384 / b1, b1}) /
                            record.scale.to(at::kFloat).view({70 / b0, 1, 16384 / b1, 1}))
                               .abs();
  EXPECT_LE(steps.max().item<float>(), symmetric ? 1.07f : 0.64f);
  EXPECT_GT(steps.max().item<float>(), 0.499f);
  EXPECT_TRUE(
      RoundToCodes(values, {record.scale, record.zero_point}, scheme).equal(record.int_data));
  if (symmetric) {
    const AffineQuantizedTensor again = QuantizeRtn(values, at::kFloat, scheme);
    EXPECT_TRUE(again.scale.equal(record.scale));
    EXPECT_TRUE(again.int_data.equal(record.int_data));
  }
}

INSTANTIATE_TEST_SUITE_P(Schemes, QuantizeRtnRoundTripTest,
                         ::testing::Values(RoundTripCase{2, 32, true}, RoundTripCase{2, 128, false},
                                           RoundTripCase{3, 64, true}, RoundTripCase{4, 128, true},
                                           RoundTripCase{4, 128, false},
                                           RoundTripCase{4, -1, false}, RoundTripCase{8, -1, true},
                                           RoundTripCase{8, 0, true}, RoundTripCase{8, 0, false}));

TEST(MakeRecordTest, MissingZeroPointIsZero) {
  const AffineQuantizedTensor record =
      MakeRecord(at::ones({2, 8}), at::ones({2, 2}, at::kHalf), {}, at::kHalf, Scheme(4, 4));
  EXPECT_THAT(Values(record.zero_point), ElementsAre(0, 0, 0, 0));
  EXPECT_EQ(record.zero_point.scalar_type(), at::kInt);
}

TEST(MakeRecordTest, RefusesScalesOfAnotherShape) {
  EXPECT_THROW(
      MakeRecord(at::ones({2, 8}), at::ones({2, 1}, at::kHalf), {}, at::kHalf, Scheme(4, 4)),
      c10::Error);
}

TEST(RtnBlockQuantizerTest, QuantizesLayersThatHaveAScheme) {
  ObservedLinears linears;
  const at::Tensor weight = Random({4, 64}, 4);
  linears.Add("q_proj", weight, Scheme(4, 32));
  linears.AddWithStatistics("k_proj", weight, std::nullopt, {});
  linears.observed().statistics.clear();  // rtn needs none
  RtnBlockQuantizer quantizer(at::kFloat);
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock block, linears.Quantize(quantizer));
  ASSERT_EQ(block.linears.size(), 2u);
  EXPECT_FALSE(block.linears[1].has_value());
  EXPECT_EQ(block.linears[0]->fallback_reason, "");
  EXPECT_TRUE(block.linears[0]->weight.int_data.equal(
      QuantizeRtn(weight, at::kFloat, Scheme(4, 32)).int_data));
  EXPECT_FALSE(block.loss_first.has_value());
  EXPECT_THAT(linears.fractions, ElementsAre(0.5, 1.0));
}

TEST(RtnBlockQuantizerTest, NamesTheLayerWhoseWeightIsDamaged) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    ObservedLinears linears;
    at::Tensor weight = Random({4, 64}, 5);
    weight[3][17] = bad;
    linears.Add("model.layers.0.mlp.up_proj", weight, Scheme(4, 32));
    RtnBlockQuantizer quantizer(at::kFloat);
    EXPECT_THAT(linears.Quantize(quantizer),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr("model.layers.0.mlp.up_proj.weight holds NaN or Inf")));
  }
}

TEST(RtnBlockQuantizerTest, RefusesAGroupThatDoesNotDivide) {
  ObservedLinears linears;
  linears.Add("down_proj", Random({4, 60}, 6), Scheme(4, 32));
  RtnBlockQuantizer quantizer(at::kFloat);
  EXPECT_THAT(linears.Quantize(quantizer),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("down_proj: group_size 32 does not divide in_features 60")));
}

TEST(RtnBlockQuantizerTest, StopsWhenCancelled) {
  ObservedLinears linears;
  linears.Add("q_proj", Random({4, 64}, 7), Scheme(4, 32));
  linears.cancel.Cancel();
  RtnBlockQuantizer quantizer(at::kFloat);
  EXPECT_THAT(linears.Quantize(quantizer), StatusIs(absl::StatusCode::kCancelled, HasSubstr("")));
}

}  // namespace
}  // namespace ptq
