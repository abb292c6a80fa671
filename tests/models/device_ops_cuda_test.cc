// Blocks by the CUDA kernels against tensor operations in float32. Needs an NVIDIA GPU: label gpu.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

#include "algorithms/cuda/cuda_runtime.h"
#include "models/decoder_model.h"
#include "models/device_ops.h"
#include "models/input_gradient.h"
#include "tests/testing/device_llama.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::ptq::testing::IsOk;
using ::testing::ElementsAre;

constexpr int64_t kLength = testing::DeviceLlamaBlock::kLength;

struct Subject : testing::DeviceLlamaBlock {
  using DeviceLlamaBlock::DeviceLlamaBlock;

  // Autograd decides by which way the block goes.
  at::Tensor Forward(const at::Tensor& hidden, bool by_tensors) const {
    const at::AutoGradMode mode(by_tensors);
    return block->Forward(hidden, rotary).detach();
  }

  at::Tensor GradientByAutograd(const at::Tensor& hidden, const at::Tensor& gradient) const {
    const at::AutoGradMode mode(true);
    at::Tensor leaf = hidden.detach();
    leaf.set_requires_grad(true);
    return torch::autograd::grad({block->Forward(leaf, rotary)}, {leaf}, {gradient})[0];
  }
};

at::Tensor Random(uint64_t seed) {
  at::manual_seed(seed);
  return at::randn({3, kLength, 192}).to(at::kBFloat16).to(at::kFloat).cuda();
}

double RelativeError(const at::Tensor& actual, const at::Tensor& expected) {
  return ((actual.to(at::kFloat) - expected).norm() / expected.norm()).item<double>();
}

class DeviceBlockTest
    : public ::testing::TestWithParam<
          std::tuple<std::tuple<int64_t, int64_t, int64_t>, bool, at::ScalarType>> {
 protected:
  void SetUp() override { ASSERT_THAT(LoadCuda(), IsOk()); }

  ModelConfig ConfigOfParam() const {
    const auto [heads, key_heads, head_dim] = std::get<0>(GetParam());
    return testing::DeviceLlamaConfig(heads, key_heads, head_dim, std::get<1>(GetParam()));
  }
  at::ScalarType dtype() const { return std::get<2>(GetParam()); }
  double Least() const { return dtype() == at::kHalf ? 1e-3 : 6e-3; }
};

TEST_P(DeviceBlockTest, ForwardAgreesWithTensorsInFloat32) {
  const Subject exact(ConfigOfParam(), at::kFloat);
  const Subject narrow(ConfigOfParam(), dtype());
  EXPECT_FALSE(PartsForDeviceOps(*exact.block, kLength)) << "float32 has no flash attention";
  ASSERT_TRUE(PartsForDeviceOps(*narrow.block, kLength));
  const at::Tensor hidden = Random(9);
  const at::Tensor input = hidden.to(dtype());
  const at::Tensor expected = exact.Forward(hidden, /*by_tensors=*/true);
  const at::Tensor eager = narrow.Forward(input, /*by_tensors=*/true);
  const at::Tensor actual = narrow.Forward(input, /*by_tensors=*/false);
  EXPECT_EQ(actual.scalar_type(), dtype());
  EXPECT_TRUE(actual.is_contiguous());
  EXPECT_LT(RelativeError(actual, expected),
            std::max(Least(), 1.2 * RelativeError(eager, expected)));
  EXPECT_TRUE(input.equal(hidden.to(dtype()))) << "the input was changed";
  EXPECT_TRUE(narrow.Forward(input, /*by_tensors=*/false).equal(actual));
  // Nor do bits depend on how the input lies in memory.
  const at::Tensor padded = at::cat({input, input}, 1).narrow(1, 0, kLength);
  EXPECT_TRUE(narrow.Forward(padded, /*by_tensors=*/false).equal(actual));
}

TEST_P(DeviceBlockTest, LayersSeeTheirInputs) {
  const Subject subject(ConfigOfParam(), dtype());
  const GatedBlockParts parts = *subject.block->gated_parts(kLength);
  const std::vector<Linear>& linears = subject.block->linears();
  const at::Tensor hidden = Random(9).to(dtype());
  const auto inputs_of = [&](bool by_tensors, std::vector<size_t>& order) {
    const at::AutoGradMode mode(by_tensors);
    std::vector<at::Tensor> inputs(linears.size());
    subject.block->Forward(hidden, subject.rotary, [&](size_t index, const at::Tensor& input) {
      order.push_back(index);
      inputs[index] = input;
      return ApplyLinear(linears[index], linears[index].weight, input);
    });
    return inputs;
  };
  std::vector<size_t> order;
  const std::vector<at::Tensor> inputs = inputs_of(/*by_tensors=*/false, order);
  EXPECT_THAT(order, ElementsAre(parts.query, parts.key, parts.value, parts.output, parts.gate,
                                 parts.up, parts.down));
  EXPECT_TRUE(inputs[parts.query].is_same(inputs[parts.key]));
  EXPECT_TRUE(inputs[parts.query].is_same(inputs[parts.value]));
  EXPECT_TRUE(inputs[parts.gate].is_same(inputs[parts.up]));
  std::vector<size_t> same_order;
  const std::vector<at::Tensor> expected = inputs_of(/*by_tensors=*/true, same_order);
  EXPECT_EQ(order, same_order);
  for (size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_EQ(inputs[i].sizes(), expected[i].sizes());
    EXPECT_LT(RelativeError(inputs[i], expected[i].to(at::kFloat)), 2 * Least()) << i;
  }
}

TEST_P(DeviceBlockTest, InputGradientAgreesWithAutogradInFloat32) {
  const Subject exact(ConfigOfParam(), at::kFloat);
  const Subject narrow(ConfigOfParam(), dtype());
  const at::Tensor hidden = Random(9);
  const at::Tensor gradient = Random(10);
  const at::Tensor expected = InputGradient(*exact.block, hidden, exact.rotary, gradient);
  const at::Tensor input = hidden.to(dtype());
  const at::Tensor narrow_gradient = gradient.to(dtype());
  const at::Tensor actual = InputGradient(*narrow.block, input, narrow.rotary, narrow_gradient);
  EXPECT_EQ(actual.sizes(), input.sizes());
  EXPECT_EQ(actual.scalar_type(), dtype());
  EXPECT_FALSE(actual.requires_grad());
  EXPECT_LT(RelativeError(actual, expected),
            std::max(Least(), 1.2 * RelativeError(narrow.GradientByAutograd(input, narrow_gradient),
                                                  expected)));
  EXPECT_TRUE(InputGradient(*narrow.block, input, narrow.rotary, narrow_gradient).equal(actual));
  EXPECT_TRUE(narrow_gradient.equal(gradient.to(dtype()))) << "the gradient was changed";
}

INSTANTIATE_TEST_SUITE_P(
    Blocks, DeviceBlockTest,
    ::testing::Combine(::testing::Values(std::tuple<int64_t, int64_t, int64_t>{4, 4, 16},
                                         std::tuple<int64_t, int64_t, int64_t>{6, 2, 32},
                                         std::tuple<int64_t, int64_t, int64_t>{4, 2, 128},
                                         std::tuple<int64_t, int64_t, int64_t>{2, 1, 256}),
                       ::testing::Bool(), ::testing::Values(at::kBFloat16, at::kHalf)));

}  // namespace
}  // namespace ptq
