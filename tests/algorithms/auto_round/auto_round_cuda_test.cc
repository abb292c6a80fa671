// The CUDA kernels against the host loops, and tuning on a device. Needs an NVIDIA GPU: label gpu.
#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <iostream>
#include <string>
#include <tuple>
#include <vector>

#include "algorithms/auto_round/auto_round.h"
#include "algorithms/auto_round/learned_scale_parameters.h"
#include "algorithms/auto_round/rounding_parameters.h"
#include "algorithms/cuda/cuda_runtime.h"
#include "algorithms/rtn/scale_search.h"
#include "observers/fisher_observer.h"
#include "tests/algorithms/auto_round/tiny_block.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/tiny_llama.h"

namespace ptq {
namespace {

using ::ptq::testing::IsOk;
using ::ptq::testing::SameRecords;
using ::ptq::testing::StatusIs;
using ::ptq::testing::TinyCase;
using ::testing::HasSubstr;

// Without a device every test here fails with LoadCuda's message.
class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_THAT(LoadCuda(), IsOk()); }
};

// Learning rates on a device, one step long.
struct DeviceRates {
  DeviceRates(float value_rate, float range_rate, bool is_better, at::Device device)
      : value(at::full({1}, value_rate, at::device(device).dtype(at::kFloat))),
        range(at::full({1}, range_rate, at::device(device).dtype(at::kFloat))),
        step(at::zeros({1}, at::device(device).dtype(at::kLong))),
        improved(at::full({1}, is_better ? 1 : 0, at::device(device).dtype(at::kInt))),
        corrections(at::full({1}, 2.0, at::device(device).dtype(at::kFloat))) {}
  StepRates get() const {
    return {.value = value.const_data_ptr<float>(),
            .range = range.const_data_ptr<float>(),
            .first_correction = corrections.const_data_ptr<float>(),
            .second_correction = corrections.const_data_ptr<float>(),
            .step = step.const_data_ptr<int64_t>(),
            .improved = improved.const_data_ptr<int32_t>()};
  }
  at::Tensor value;
  at::Tensor range;
  at::Tensor step;
  at::Tensor improved;
  at::Tensor corrections;
};

class CudaRoundingTest
    : public ::testing::TestWithParam<std::tuple<int, bool, int64_t, at::ScalarType>> {
 protected:
  void SetUp() override { ASSERT_THAT(LoadCuda(), IsOk()); }
};

// Of a shape that `group_size` divides. 330 columns: groups of 33 do not start at vector
// boundaries. Per tensor it is long enough to be cut into units.
at::Tensor WeightFor(int64_t group_size, at::ScalarType dtype) {
  at::manual_seed(5);
  const int64_t columns = group_size > 0 && 330 % group_size != 0 ? 384 : 330;
  const int64_t rows = group_size == QuantizationScheme::kPerTensor ? 240 : 40;
  at::Tensor weight = at::randn({rows, columns}) * at::exp(at::randn({rows, 1}));
  weight[3].zero_();
  return weight.to(dtype);
}

TEST_P(CudaRoundingTest, GivesTheHostsBits) {
  const auto [bits, symmetric, group_size, dtype] = GetParam();
  QuantizationScheme scheme;
  scheme.bits = bits;
  scheme.symmetric = symmetric;
  scheme.group_size = group_size;
  const at::Tensor weight = WeightFor(group_size, dtype);
  RoundingParameters host(weight, at::kBFloat16, scheme);
  RoundingParameters device(weight.to(at::kCUDA), at::kBFloat16, scheme);
  const at::Tensor host_output = at::empty_like(weight);
  const at::Tensor device_output = at::empty_like(weight.to(at::kCUDA));
  int64_t differing_factors = 0;
  for (int i = 0; i < 4; ++i) {
    host.FakeQuantize({host_output});
    device.FakeQuantize({device_output});
    ASSERT_TRUE(at::equal(device_output.cpu(), host_output)) << "step " << i;
    const at::Tensor gradient = at::randn(weight.sizes()).to(dtype);
    const DeviceRates host_rates(0.1F, 0.02F, i == 2, at::kCPU);
    const DeviceRates device_rates(0.1F, 0.02F, i == 2, at::kCUDA);
    host.Step(gradient, host_rates.get(), {host_output});
    device.Step(gradient.to(at::kCUDA), device_rates.get(), {device_output});
    const at::Tensor stepped = device_output.clone();
    device.FakeQuantize({device_output});
    ASSERT_TRUE(at::equal(stepped, device_output)) << "what a step writes, step " << i;
    ASSERT_TRUE(at::equal(device.value().cpu(), host.value())) << "step " << i;
    // The factors' gradients are sums in another order: a sum near zero may change its sign.
    const at::Tensor differs =
        (device.alpha().cpu() != host.alpha()).logical_or(device.beta().cpu() != host.beta());
    differing_factors += differs.sum().item<int64_t>();
    device.alpha().copy_(host.alpha());
    device.beta().copy_(host.beta());
  }
  EXPECT_LE(differing_factors, 1 + host.alpha().numel() / 50);
  EXPECT_TRUE(at::equal(device.Record().int_data.cpu(), host.Record().int_data));
  EXPECT_TRUE(at::equal(device.Record().scale.cpu(), host.Record().scale));
  EXPECT_TRUE(at::equal(device.Record().zero_point.cpu(), host.Record().zero_point));
}

INSTANTIATE_TEST_SUITE_P(
    Schemes, CudaRoundingTest,
    ::testing::Combine(::testing::Values(2, 3, 4, 8), ::testing::Bool(),
                       ::testing::Values(int64_t{16}, int64_t{32}, int64_t{33}, int64_t{64},
                                         int64_t{110}, int64_t{128}, int64_t{-1}, int64_t{0}),
                       ::testing::Values(at::kFloat, at::kBFloat16, at::kHalf)));

class CudaLearnedScaleTest : public CudaRoundingTest {};

TEST_P(CudaLearnedScaleTest, GivesTheHostsBits) {
  const auto [bits, symmetric, group_size, dtype] = GetParam();
  QuantizationScheme scheme;
  scheme.bits = bits;
  scheme.symmetric = symmetric;
  scheme.group_size = group_size;
  const at::Tensor weight = WeightFor(group_size, dtype);
  const QParams start = SearchScales(weight, at::ones({weight.size(1)}), scheme);
  LearnedScaleParameters host(weight, at::kBFloat16, scheme, start);
  LearnedScaleParameters device(weight.to(at::kCUDA), at::kBFloat16, scheme,
                                {start.scale.to(at::kCUDA), start.zero_point.to(at::kCUDA)});
  const at::Tensor host_output = at::empty_like(weight);
  const at::Tensor device_output = at::empty_like(weight.to(at::kCUDA));
  for (int i = 0; i < 4; ++i) {
    host.FakeQuantize({host_output});
    device.FakeQuantize({device_output});
    ASSERT_TRUE(at::equal(device_output.cpu(), host_output)) << "step " << i;
    const at::Tensor gradient = at::randn(weight.sizes()).to(dtype);
    DeviceRates host_rates(0.1F, 0.02F, false, at::kCPU);
    DeviceRates device_rates(0.1F, 0.02F, false, at::kCUDA);
    host.Step(gradient, host_rates.get(), {host_output});
    device.Step(gradient.to(at::kCUDA), device_rates.get(), {device_output});
    const at::Tensor stepped = device_output.clone();
    device.FakeQuantize({device_output});
    ASSERT_TRUE(at::equal(stepped, device_output)) << "what a step writes, step " << i;
    ASSERT_TRUE(at::equal(device.position().cpu(), host.position())) << "step " << i;
    ASSERT_TRUE(at::equal(device.first_moment().cpu(), host.first_moment())) << "step " << i;
    // The factors' gradients are sums in another order.
    EXPECT_TRUE(at::allclose(device.factor().cpu(), host.factor(), 1e-3, 1e-3)) << "step " << i;
    device.factor().copy_(host.factor());
  }
  EXPECT_TRUE(at::equal(device.Record().int_data.cpu(), host.Record().int_data));
  EXPECT_TRUE(at::equal(device.Record().scale.cpu(), host.Record().scale));
  EXPECT_TRUE(at::equal(device.Record().zero_point.cpu(), host.Record().zero_point));
}

INSTANTIATE_TEST_SUITE_P(
    Schemes, CudaLearnedScaleTest,
    ::testing::Combine(::testing::Values(2, 4, 8), ::testing::Bool(),
                       ::testing::Values(int64_t{16}, int64_t{32}, int64_t{33}, int64_t{64},
                                         int64_t{110}, int64_t{128}, int64_t{-1}, int64_t{0}),
                       ::testing::Values(at::kFloat, at::kBFloat16, at::kHalf)));

TEST_F(CudaTest, TunesABlockByTheLearnedScaleRecipeInEveryDtype) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    TinyCase input(at::kCUDA, dtype, /*samples=*/16, /*length=*/32, /*width=*/64, /*inner=*/128);
    input.observed.fisher = at::eye(64) + at::full({64, 64}, 0.1);
    input.observed.fisher_tokens = 1 << 20;
    AutoRoundOptions options;
    options.method = AutoRoundMethod::kLearnedScale;
    options.iterations = 30;
    options.batch_size = 16;
    AutoRoundBlockQuantizer quantizer(dtype == at::kHalf ? at::kHalf : at::kBFloat16, options);
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock first, quantizer.QuantizeBlock(input.Request()));
    EXPECT_LT(*first.loss_best, 0.75 * *first.loss_first) << dtype;
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock second, quantizer.QuantizeBlock(input.Request()));
    EXPECT_TRUE(SameRecords(first, second)) << dtype;
    EXPECT_EQ(first.loss_curve, second.loss_curve) << dtype;
    if (dtype == at::kFloat) {  // as on the host, but for the order of sums
      TinyCase host(at::kCPU, dtype, 16, 32, 64, 128);
      host.observed.fisher = input.observed.fisher;
      host.observed.fisher_tokens = 1 << 20;
      PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock reference,
                               quantizer.QuantizeBlock(host.Request()));
      EXPECT_NEAR(*first.loss_first, *reference.loss_first, 1e-3 * *reference.loss_first);
      EXPECT_NEAR(*first.loss_best, *reference.loss_best, 0.1 * *reference.loss_best);
    }
  }
}

TEST_F(CudaTest, FisherPassIsTheHosts) {
  const ModelConfig config = testing::TinyLlamaConfig();
  const testing::InMemoryCheckpoint checkpoint = testing::RandomCheckpoint(config, 4);
  const at::Tensor ids = at::randint(config.vocab_size, {6, 16}, at::kLong);
  std::vector<std::vector<at::Tensor>> results;
  for (const int64_t device_bytes : {int64_t{-1}, int64_t{1} << 30, int64_t{0}}) {
    const at::Device device = device_bytes < 0 ? at::kCPU : at::kCUDA;
    PTQ_ASSERT_OK_AND_ASSIGN(const auto model,
                             DecoderModel::Create(config, checkpoint, {.device = device}));
    const int64_t kept_bytes = std::max<int64_t>(0, device_bytes);
    BlockLoader loader(*model, {.stage = device.is_cuda(), .kept_bytes = kept_bytes});
    FisherObserver observer(
        loader,
        {.micro_batch = 4, .device_bytes = kept_bytes, .scratch_folder = ::testing::TempDir()});
    std::vector<at::Tensor>& result = results.emplace_back();
    const CancellationToken never;
    PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor embedding, model->Embed(ids));
    ASSERT_THAT(observer.Observe(embedding, never, {},
                                 [&](int64_t, const at::Tensor& fisher) {
                                   result.push_back(fisher.cpu().clone());
                                   return absl::OkStatus();
                                 }),
                IsOk());
  }
  for (size_t i = 0; i < results[0].size(); ++i) {
    EXPECT_TRUE(results[1][i].equal(results[2][i]))
        << "where outputs and blocks are kept changes bits";
    EXPECT_LT((results[1][i] - results[0][i]).abs().max().item<double>(),
              1e-3 * results[0][i].abs().max().item<double>());
  }
}

TEST_F(CudaTest, NamesTheDeviceAndItsMemory) {
  EXPECT_NE(CudaDeviceName(), "");
  EXPECT_GT(CudaDeviceMemoryBytes(), int64_t{1} << 30);
  const at::Tensor held = at::zeros({1 << 20}, at::device(at::kCUDA).dtype(at::kFloat));
  EXPECT_GE(CudaPeakMemoryBytes(), int64_t{4} << 20);
  EXPECT_THAT(SynchronizeCuda(), IsOk());
}

TEST_F(CudaTest, TunesABlockInEveryDtype) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    TinyCase input(at::kCUDA, dtype, /*samples=*/16, /*length=*/32, /*width=*/64, /*inner=*/128);
    AutoRoundOptions options;
    options.iterations = 60;
    options.batch_size = 16;
    const at::ScalarType stored = dtype == at::kHalf ? at::kHalf : at::kBFloat16;
    AutoRoundBlockQuantizer quantizer(stored, options);
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock first, quantizer.QuantizeBlock(input.Request()));
    EXPECT_LT(*first.loss_best, 0.85 * *first.loss_first) << dtype;
    ASSERT_EQ(first.loss_curve.size(), 60U);
    // The same seed gives the same bytes.
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock second, quantizer.QuantizeBlock(input.Request()));
    EXPECT_TRUE(SameRecords(first, second)) << dtype;
    EXPECT_EQ(first.loss_curve, second.loss_curve) << dtype;
    if (dtype == at::kFloat) {
      EXPECT_NEAR(input.Loss(first), *first.loss_best, 1e-3 * *first.loss_best);
      // As on the host, but for the order of sums.
      TinyCase host(at::kCPU, dtype, 16, 32, 64, 128);
      PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock reference,
                               quantizer.QuantizeBlock(host.Request()));
      EXPECT_NEAR(*first.loss_first, *reference.loss_first, 1e-3 * *reference.loss_first);
      EXPECT_NEAR(*first.loss_best, *reference.loss_best, 0.1 * *reference.loss_best);
    }
  }
}

TEST_F(CudaTest, StopsWhenCancelled) {
  TinyCase input(at::kCUDA, at::kBFloat16);
  input.progress = [&](double) { input.cancel.Cancel(); };
  AutoRoundOptions options;
  options.iterations = 100000;
  EXPECT_THAT(AutoRoundBlockQuantizer(at::kBFloat16, options).QuantizeBlock(input.Request()),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr("")));
}

}  // namespace
}  // namespace ptq
