// K-quants: weights that lie on a grid come back exactly, values are what ggml's formulas give, and
// errors fall with importance and bits. tests/interop/gguf_output_test.py compares with llama.cpp.
#include "algorithms/rtn/k_quant.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "algorithms/gptq/gptq.h"
#include "algorithms/rtn/opt_rtn.h"
#include "algorithms/rtn/rtn.h"
#include "tests/algorithms/observed_linear.h"
#include "tests/algorithms/tensor_literals.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::ObservedLinears;
using testing::Random;
using testing::StatusIs;

AffineQuantizedTensor Quantize(const at::Tensor& weight, KQuant type,
                               const at::Tensor& importance = {}) {
  return QuantizeKQuant(weight, importance, at::kFloat, type, CancellationToken()).value();
}

double Error(const at::Tensor& weight, const AffineQuantizedTensor& record,
             const at::Tensor& importance) {
  return (Dequantize(record) - weight).square().mul(importance).mean().item<double>();
}

class KQuantTest : public ::testing::TestWithParam<KQuant> {
 protected:
  KQuant type() const { return GetParam(); }
  KQuantTraits traits() const { return TraitsOf(type()); }
};

TEST_P(KQuantTest, WeightsOnAGridComeBackExactly) {
  // Every group spans all codes with one scale and one minimum, which float16 holds.
  const int levels = 1 << traits().bits;
  const double scale = traits().highest_scale / 1024.0;
  const double minimum = traits().highest_scale / 512.0;
  at::Tensor weight = at::empty({2, 512}, at::kFloat);
  for (int64_t n = 0; n < 2; ++n) {
    for (int64_t k = 0; k < 512; ++k) {
      // The ends of the range first.
      const int64_t place = k % traits().group_size;
      const int code = place == 0   ? 0
                       : place == 1 ? levels - 1
                                    : static_cast<int>((5 * k + 3 * n) % levels);
      weight[n][k] = traits().symmetric ? (code - levels / 2) / 1024.0 * traits().lowest_scale
                                        : scale * code - minimum;
    }
  }
  const AffineQuantizedTensor record = Quantize(weight, type());
  EXPECT_TRUE(Dequantize(record).equal(weight));
}

TEST_P(KQuantTest, ValuesAreThoseOfTheFormula) {
  const AffineQuantizedTensor record = Quantize(Random({3, 512}, 1), type());
  const at::Tensor values = Dequantize(record);
  const SuperBlockScales& scales = record.super_blocks;
  EXPECT_EQ(scales.minimum.defined(), !traits().symmetric);
  EXPECT_FALSE(record.scale.defined());
  for (int64_t n = 0; n < 3; ++n) {
    for (int64_t k = 0; k < 512; ++k) {
      const int64_t group = k / traits().group_size;
      const auto code = record.int_data[n][k].item<float>();
      const float unit =
          scales.scale[n][k / 256].item<float>() * scales.sub_scale[n][group].item<float>();
      float expected = unit * code;
      if (!traits().symmetric) {
        expected =
            unit * (code + static_cast<float>(1 << (traits().bits - 1))) -
            scales.minimum[n][k / 256].item<float>() * scales.sub_minimum[n][group].item<float>();
      }
      ASSERT_EQ(values[n][k].item<float>(), expected) << n << ", " << k;
    }
  }
}

TEST_P(KQuantTest, ImportanceLowersTheErrorThatItWeighs) {
  const at::Tensor weight = Random({16, 512}, 2);
  const at::Tensor importance = Random({512}, 3).mul(1.5).exp();
  const at::Tensor alike = at::ones({512});
  const auto plain = Quantize(weight, type());
  const auto weighted = Quantize(weight, type(), importance);
  EXPECT_LT(Error(weight, weighted, importance), 0.98 * Error(weight, plain, importance));
  EXPECT_LT(Error(weight, plain, alike), 0.98 * Error(weight, weighted, alike));
  // rtn and opt-rtn are these two.
  EXPECT_TRUE(QuantizeRtn(weight, at::kFloat, KQuantScheme(type())).int_data.equal(plain.int_data));
  const auto by_opt_rtn =
      QuantizeOptRtn(weight, importance, at::kFloat, KQuantScheme(type()), CancellationToken());
  EXPECT_TRUE(by_opt_rtn->int_data.equal(weighted.int_data));
}

TEST_P(KQuantTest, TheSameBitsForAnyNumberOfThreads) {
  const at::Tensor weight = Random({9, 768}, 4);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  AffineQuantizedTensor one = Quantize(weight, type());
  at::set_num_threads(3);
  AffineQuantizedTensor three = Quantize(weight, type());
  at::set_num_threads(threads);
  const auto of_one = TensorsOf(one);
  const auto of_three = TensorsOf(three);
  ASSERT_EQ(of_one.size(), traits().symmetric ? 3u : 5u);
  for (size_t i = 0; i < of_one.size(); ++i) EXPECT_TRUE(of_one[i]->equal(*of_three[i]));
}

TEST_P(KQuantTest, WeightsOfAllSizes) {
  at::Tensor weight = Random({6, 256}, 5);
  weight[0].zero_();
  weight[1].fill_(0.5);
  weight[2].abs_();
  weight[3].mul_(1e-12);
  weight[4].mul_(1e6);
  weight[5][7] = 1000;
  const at::Tensor values = Dequantize(Quantize(weight, type()));
  EXPECT_TRUE(at::isfinite(values).all().item<bool>());
  EXPECT_EQ(values[0].abs().max().item<double>(), 0.0);
  EXPECT_NEAR(values[1].mean().item<double>(), 0.5, 0.01);
  EXPECT_LE(values[3].abs().max().item<double>(), 1e-6);
  EXPECT_LT((values[5][7] - 1000).abs().item<double>(), 1);
}

TEST_P(KQuantTest, GptqRoundsOnTheGridOfOptRtn) {
  const at::Tensor inputs = Random({512, 256}, 6).mm(Random({256, 256}, 7) / 16 + at::eye(256));
  const at::Tensor weight = Random({24, 256}, 8);
  ObservedLinears linears;
  linears.Add("q_proj", weight, KQuantScheme(type()), inputs);
  GptqBlockQuantizer gptq(at::kFloat, {});
  OptRtnBlockQuantizer opt_rtn(at::kFloat);
  PTQ_ASSERT_OK_AND_ASSIGN(QuantizedBlock by_gptq, linears.Quantize(gptq));
  PTQ_ASSERT_OK_AND_ASSIGN(QuantizedBlock by_opt_rtn, linears.Quantize(opt_rtn));
  AffineQuantizedTensor& solved = by_gptq.linears[0]->weight;
  AffineQuantizedTensor& rounded = by_opt_rtn.linears[0]->weight;
  const auto error = [&](const AffineQuantizedTensor& record) {
    return inputs.mm((Dequantize(record) - weight).t()).square().mean().item<double>();
  };
  EXPECT_EQ(by_gptq.linears[0]->fallback_reason, "");
  EXPECT_LT(error(solved), 0.8 * error(rounded));
  const auto of_solved = TensorsOf(solved);
  const auto of_rounded = TensorsOf(rounded);
  for (size_t i = 1; i < of_solved.size(); ++i) EXPECT_TRUE(of_solved[i]->equal(*of_rounded[i]));
  EXPECT_GE(solved.int_data.min().item<int64_t>(), rounded.quant_min);
  EXPECT_LE(solved.int_data.max().item<int64_t>(), rounded.quant_max);
}

INSTANTIATE_TEST_SUITE_P(Types, KQuantTest,
                         ::testing::Values(KQuant::kQ2_K, KQuant::kQ3_K, KQuant::kQ4_K,
                                           KQuant::kQ5_K, KQuant::kQ6_K),
                         [](const auto& test) { return std::string(KQuantName(test.param)); });

TEST(KQuantsTest, ErrorsFallWithTheBits) {
  const at::Tensor weight = Random({8, 512}, 9);
  const at::Tensor alike = at::ones({512});
  double before = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < kKQuantNames.size(); ++i) {
    const double error = Error(weight, Quantize(weight, static_cast<KQuant>(i + 1)), alike);
    EXPECT_LT(error, 0.5 * before) << kKQuantNames[i];
    before = error;
  }
}

TEST(KQuantsTest, WhatDoesNotFitAndWhoAsksToStop) {
  ObservedLinears linears;
  linears.Add("q_proj", Random({4, 128}, 1), KQuantScheme(KQuant::kQ4_K));
  RtnBlockQuantizer rtn(at::kFloat);
  EXPECT_THAT(linears.Quantize(rtn),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("q_proj: Q4_K has super-blocks of 256 columns")));
  CancellationToken cancel;
  cancel.Cancel();
  EXPECT_THAT(QuantizeKQuant(Random({4, 256}, 1), {}, at::kFloat, KQuant::kQ4_K, cancel),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr("stop")));
}

}  // namespace
}  // namespace ptq
