// RTN, scale search and GPTQ on a device against the CPU. Needs an NVIDIA GPU: label gpu.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <tuple>

#include "algorithms/cuda/cuda_runtime.h"
#include "algorithms/gptq/gptq.h"
#include "algorithms/rtn/opt_rtn.h"
#include "algorithms/rtn/rtn.h"
#include "tests/algorithms/observed_linear.h"
#include "tests/algorithms/tensor_literals.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using testing::IsOk;
using testing::ObservedLinears;
using testing::Random;

// Bits, group size, symmetric.
class CudaQuantizersTest : public ::testing::TestWithParam<std::tuple<int, int64_t, bool>> {
 protected:
  void SetUp() override { ASSERT_THAT(LoadCuda(), IsOk()); }

  QuantizationScheme scheme() const {
    const auto [bits, group_size, symmetric] = GetParam();
    return {.bits = bits, .group_size = group_size, .symmetric = symmetric};
  }
  AffineQuantizedTensor Quantize(BlockQuantizer& quantizer, at::Device device) const {
    ObservedLinears linears;
    linears.Add("q_proj", weight_.to(device), scheme(), inputs_.to(device));
    auto block = linears.Quantize(quantizer);
    TORCH_CHECK(block.ok(), block.status().ToString());
    TORCH_CHECK(block->linears[0]->fallback_reason.empty());
    return block->linears[0]->weight;
  }

  const at::Tensor weight_ = Random({96, 384}, 1).to(at::kBFloat16).to(at::kFloat);
  const at::Tensor inputs_ = Random({1024, 384}, 2).mm(Random({384, 384}, 3) / 20 + at::eye(384));
};

double EqualShare(const at::Tensor& left, const at::Tensor& right) {
  return (left.cpu() == right.cpu()).to(at::kDouble).mean().item<double>();
}

TEST_P(CudaQuantizersTest, RtnGivesTheCpusBits) {
  for (const ScaleRule rule : {ScaleRule::kFullRange, ScaleRule::kTorchao}) {
    QuantizationScheme with_rule = scheme();
    with_rule.scale_rule = rule;
    const AffineQuantizedTensor cpu = QuantizeRtn(weight_, at::kBFloat16, with_rule);
    const AffineQuantizedTensor cuda = QuantizeRtn(weight_.cuda(), at::kBFloat16, with_rule);
    EXPECT_TRUE(cuda.int_data.is_cuda());
    if (rule == ScaleRule::kFullRange) {
      EXPECT_TRUE(cuda.int_data.cpu().equal(cpu.int_data));
      EXPECT_TRUE(cuda.scale.cpu().equal(cpu.scale));
      EXPECT_TRUE(cuda.zero_point.cpu().equal(cpu.zero_point));
    } else {
      // torchao's own results differ here: CUDA divides by a number through its reciprocal.
      EXPECT_GT(EqualShare(cuda.int_data, cpu.int_data), 0.98);
    }
  }
}

TEST_P(CudaQuantizersTest, OptRtnAgreesButForTies) {
  OptRtnBlockQuantizer quantizer(at::kFloat);
  const AffineQuantizedTensor cpu = Quantize(quantizer, at::kCPU);
  const AffineQuantizedTensor cuda = Quantize(quantizer, at::kCUDA);
  EXPECT_GT(EqualShare(cuda.scale, cpu.scale), 0.97);
  EXPECT_GT(EqualShare(cuda.int_data, cpu.int_data), 0.97);
}

TEST_P(CudaQuantizersTest, GptqReachesTheCpusOutputError) {
  GptqBlockQuantizer quantizer(at::kFloat, {});
  const auto output_error = [&](const AffineQuantizedTensor& record) {
    return inputs_.mm((Dequantize(record, at::kFloat).cpu() - weight_).t())
        .square()
        .mean()
        .item<double>();
  };
  const AffineQuantizedTensor cuda = Quantize(quantizer, at::kCUDA);
  EXPECT_NEAR(output_error(cuda) / output_error(Quantize(quantizer, at::kCPU)), 1, 0.02);
  EXPECT_TRUE(Quantize(quantizer, at::kCUDA).int_data.equal(cuda.int_data));
}

INSTANTIATE_TEST_SUITE_P(Schemes, CudaQuantizersTest,
                         ::testing::Combine(::testing::Values(2, 4, 8),
                                            ::testing::Values(128, -1, 0), ::testing::Bool()));

}  // namespace
}  // namespace ptq
