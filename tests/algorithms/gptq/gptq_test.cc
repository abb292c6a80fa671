#include "algorithms/gptq/gptq.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "algorithms/rtn/opt_rtn.h"
#include "algorithms/rtn/rtn.h"
#include "tests/algorithms/observed_linear.h"
#include "tests/algorithms/tensor_literals.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::ObservedLinears;
using testing::Random;
using testing::StatusIs;

constexpr QuantizationScheme kScheme = {.bits = 3, .group_size = 32};

at::Tensor CorrelatedInputs() {
  const at::Tensor mix = Random({64, 64}, 1) / 8 + at::eye(64);
  return Random({256, 64}, 2).mm(mix);
}

GptqBlockQuantizer Gptq() { return GptqBlockQuantizer(at::kFloat, {}); }

double OutputError(const at::Tensor& inputs, const at::Tensor& weight,
                   const AffineQuantizedTensor& record) {
  return inputs.mm((Dequantize(record) - weight).t()).square().mean().item<double>();
}

LinearStatistics StatisticsWith(const at::Tensor& hessian) {
  return {.hessian = hessian, .importance = hessian.diagonal().clone(), .tokens = 100};
}

TEST(GptqBlockQuantizerTest, OutputErrorsOrderGptqOptRtnRtn) {
  const at::Tensor inputs = CorrelatedInputs();
  const at::Tensor weight = Random({32, 64}, 3);
  ObservedLinears linears;
  linears.Add("q_proj", weight, kScheme, inputs);
  GptqBlockQuantizer gptq = Gptq();
  OptRtnBlockQuantizer opt_rtn(at::kFloat);
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock by_gptq, linears.Quantize(gptq));
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock by_opt_rtn, linears.Quantize(opt_rtn));
  const double gptq_error = OutputError(inputs, weight, by_gptq.linears[0]->weight);
  const double opt_rtn_error = OutputError(inputs, weight, by_opt_rtn.linears[0]->weight);
  const double rtn_error = OutputError(inputs, weight, QuantizeRtn(weight, at::kFloat, kScheme));
  EXPECT_LT(gptq_error, 0.8 * opt_rtn_error);
  EXPECT_LT(opt_rtn_error, 0.95 * rtn_error);
  EXPECT_EQ(by_gptq.linears[0]->fallback_reason, "");
  // Static scales: the same ones.
  EXPECT_TRUE(by_gptq.linears[0]->weight.scale.equal(by_opt_rtn.linears[0]->weight.scale));
}

TEST(GptqBlockQuantizerTest, SharedHessiansGiveWhatSeparateOnesGive) {
  const at::Tensor inputs = CorrelatedInputs();
  const LinearStatistics shared = StatisticsWith(inputs.t().mm(inputs));
  ObservedLinears together;
  ObservedLinears apart;
  for (const uint64_t seed : {4, 5, 6}) {
    const at::Tensor weight = Random({16, 64}, seed);
    together.AddWithStatistics("proj", weight, kScheme, shared);
    apart.AddWithStatistics("proj", weight, kScheme, StatisticsWith(shared.hessian.clone()));
  }
  GptqBlockQuantizer gptq = Gptq();
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock first, together.Quantize(gptq));
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock second, apart.Quantize(gptq));
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(first.linears[i]->weight.int_data.equal(second.linears[i]->weight.int_data)) << i;
  }
  EXPECT_THAT(together.fractions, ElementsAre(1.0 / 3, 2.0 / 3, 1.0));
}

TEST(GptqBlockQuantizerTest, FallsBackToOptRtnAndSaysSo) {
  at::Tensor damaged = at::eye(64);
  damaged[3][5] = std::nan("");
  at::Tensor indefinite = at::eye(64);
  indefinite[7][7] = -5;
  for (const at::Tensor& hessian : {damaged, indefinite, at::zeros({64, 64})}) {
    const at::Tensor weight = Random({16, 64}, 7);
    ObservedLinears linears;
    linears.AddWithStatistics("o_proj", weight, kScheme, StatisticsWith(hessian));
    linears.Add("q_proj", weight, kScheme, CorrelatedInputs());
    GptqBlockQuantizer gptq = Gptq();
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock block, linears.Quantize(gptq));
    EXPECT_THAT(block.linears[0]->fallback_reason, HasSubstr("after damping 1"));
    EXPECT_THAT(block.linears[0]->fallback_reason, HasSubstr(": opt-rtn"));
    PTQ_ASSERT_OK_AND_ASSIGN(
        const AffineQuantizedTensor expected,
        QuantizeOptRtn(weight, hessian.diagonal(), at::kFloat, kScheme, CancellationToken()));
    EXPECT_TRUE(block.linears[0]->weight.int_data.equal(expected.int_data));
    EXPECT_TRUE(block.linears[0]->weight.scale.equal(expected.scale));
    EXPECT_EQ(block.linears[0]->weight.bits, 3);
    EXPECT_EQ(block.linears[0]->damping, std::nullopt);
    EXPECT_EQ(block.linears[1]->fallback_reason, "");
    EXPECT_EQ(block.linears[1]->damping, GptqOptions().damping_ladder.front());
  }
}

TEST(GptqBlockQuantizerTest, OneLayersOverflowIsNotTheOthers) {
  // An error of column 5 goes to column 9 almost tenfold.
  at::Tensor hessian = at::eye(64);
  hessian[5][5] = 100;
  hessian[5][9] = hessian[9][5] = 9.9f;
  ObservedLinears linears;
  const LinearStatistics shared = StatisticsWith(hessian);
  for (const uint64_t seed : {17, 18, 19}) {
    at::Tensor weight = Random({16, 64}, seed);
    if (seed == 18) weight[3][5] = 3e38f;  // far above float16 scales: all error
    linears.AddWithStatistics("proj", weight, kScheme, shared);
  }
  GptqBlockQuantizer gptq = Gptq();
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock block, linears.Quantize(gptq));
  EXPECT_EQ(block.linears[0]->fallback_reason, "");
  EXPECT_THAT(block.linears[1]->fallback_reason, HasSubstr("not finite while solving: opt-rtn"));
  EXPECT_EQ(block.linears[2]->fallback_reason, "");
}

TEST(GptqBlockQuantizerTest, LayersWithoutTokensAreRoundedAndSaySo) {
  const at::Tensor weight = Random({16, 64}, 8);
  ObservedLinears linears;
  linears.Add("expert.up_proj", weight, kScheme);
  GptqBlockQuantizer gptq = Gptq();
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock block, linears.Quantize(gptq));
  EXPECT_THAT(block.linears[0]->fallback_reason, HasSubstr("no calibration token"));
  PTQ_ASSERT_OK_AND_ASSIGN(
      const AffineQuantizedTensor uniform,
      QuantizeOptRtn(weight, at::ones({64}), at::kFloat, kScheme, CancellationToken()));
  EXPECT_TRUE(block.linears[0]->weight.int_data.equal(uniform.int_data));
}

TEST(GptqBlockQuantizerTest, NeedsCalibrationData) {
  ObservedLinears linears;
  linears.Add("q_proj", Random({4, 64}, 9), kScheme);
  linears.observed().statistics.clear();
  GptqBlockQuantizer gptq = Gptq();
  EXPECT_THAT(linears.Quantize(gptq), StatusIs(absl::StatusCode::kFailedPrecondition,
                                               HasSubstr("gptq needs calibration data")));
}

TEST(GptqBlockQuantizerTest, StopsWhenCancelled) {
  ObservedLinears linears;
  linears.Add("q_proj", Random({4, 64}, 10), kScheme, CorrelatedInputs());
  linears.cancel.Cancel();
  GptqBlockQuantizer gptq = Gptq();
  EXPECT_THAT(linears.Quantize(gptq), StatusIs(absl::StatusCode::kCancelled, HasSubstr("")));
}

TEST(GptqBlockQuantizerTest, NamesTheLayerWhoseWeightIsDamaged) {
  at::Tensor weight = Random({4, 64}, 11);
  weight[0][0] = std::nan("");
  ObservedLinears linears;
  linears.Add("model.layers.0.self_attn.v_proj", weight, kScheme, CorrelatedInputs());
  GptqBlockQuantizer gptq = Gptq();
  EXPECT_THAT(linears.Quantize(gptq), StatusIs(absl::StatusCode::kInvalidArgument,
                                               HasSubstr("model.layers.0.self_attn.v_proj")));
}

}  // namespace
}  // namespace ptq
