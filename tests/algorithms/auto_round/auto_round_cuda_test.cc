// The CUDA kernels against the host loops, and tuning on a device. Needs an NVIDIA GPU: label gpu.
#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "algorithms/auto_round/auto_round.h"
#include "algorithms/auto_round/fp8.h"
#include "algorithms/auto_round/learned_scale_parameters.h"
#include "algorithms/auto_round/rounding_parameters.h"
#include "algorithms/cuda/cuda_runtime.h"
#include "algorithms/rtn/scale_search.h"
#include "observers/fisher_observer.h"
#include "observers/observed_block.h"
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

// The first block of a small Llama with its calibration, in host memory or on the device.
class LlamaTuning {
 public:
  explicit LlamaTuning(bool chains_on_host) {
    config_ = testing::TinyLlamaConfig();
    config_.hidden_size = 256;
    config_.intermediate_size = 384;
    config_.head_dim = 64;
    config_.max_position_embeddings = 128;
    config_.attention_bias = false;
    config_.mlp_bias = false;
    checkpoint_ = testing::RandomCheckpoint(config_, 4, at::kBFloat16);
    for (auto& [name, tensor] : checkpoint_.tensors) {
      if (tensor.dim() == 2) tensor.mul_(0.2);
    }
    model_ =
        DecoderModel::Create(config_, checkpoint_, {.device = at::kCUDA, .dtype = at::kBFloat16})
            .value();
    at::manual_seed(6);
    const at::Tensor ids = at::randint(config_.vocab_size, {13, 128}, at::kLong);
    BlockInputOptions options{.micro_batch = 3, .held_out = 1};
    if (chains_on_host) {
      options.allocate = [](at::IntArrayRef shape, at::ScalarType dtype) {
        return at::empty(shape, at::device(at::kCPU).dtype(dtype).pinned_memory(true));
      };
    }
    observer_ = BlockInputObserver::Create(*model_, ids, options).value();
    first_ = model_->LoadBlock(0).value();
    block_ = model_->LoadBlock(1).value();
    observer_->Observe(*first_).value();
    std::vector<at::Tensor> rounded;
    for (const Linear& linear : first_->linears()) {
      rounded.push_back((linear.weight * 64).round() / 64);
    }
    error_ = observer_->Advance(*first_, rounded).value();
    observed_ = observer_->Observe(*block_).value();
    observed_.fisher = at::eye(256) + at::full({256, 256}, 0.1);
    observed_.fisher_tokens = 1 << 20;
    QuantizationScheme scheme;
    scheme.bits = 4;
    scheme.group_size = 128;
    schemes_.assign(block_->linears().size(), scheme);
  }

  absl::StatusOr<QuantizedBlock> Tune(AutoRoundMethod method, TuningPrecision precision,
                                      int64_t micro_batch) {
    AutoRoundOptions options;
    options.method = method;
    options.iterations = 8;
    options.batch_size = 8;
    options.micro_batch = micro_batch;
    options.precision = precision;
    return AutoRoundBlockQuantizer(at::kBFloat16, options)
        .QuantizeBlock({observed_, schemes_, 42, cancel_, {}});
  }

  const ObservedBlock& observed() const { return observed_; }
  const ReconstructionError& error() const { return error_; }

 private:
  ModelConfig config_;
  testing::InMemoryCheckpoint checkpoint_;
  std::unique_ptr<DecoderModel> model_;
  std::unique_ptr<BlockInputObserver> observer_;
  std::unique_ptr<DecoderBlock> first_;
  std::unique_ptr<DecoderBlock> block_;
  ReconstructionError error_;
  ObservedBlock observed_;
  std::vector<std::optional<QuantizationScheme>> schemes_;
  CancellationToken cancel_;
};

class MicroBatchTest
    : public ::testing::TestWithParam<std::tuple<AutoRoundMethod, TuningPrecision>> {
 protected:
  void SetUp() override {
    ASSERT_THAT(LoadCuda(), IsOk());
    if (std::get<1>(GetParam()) == TuningPrecision::kFp8 && !HasFp8Products()) {
      GTEST_SKIP() << "needs compute capability 9.0";
    }
  }
};

TEST_P(MicroBatchTest, TuneLikeTheBatch) {
  const auto [method, precision] = GetParam();
  LlamaTuning input(false);
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock whole, input.Tune(method, precision, 0));
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock same, input.Tune(method, precision, 8));
  EXPECT_TRUE(SameRecords(whole, same));
  EXPECT_EQ(whole.loss_curve, same.loss_curve);
  for (const int64_t micro_batch : {4, 3, 1}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock parts,
                             input.Tune(method, precision, micro_batch));
    ASSERT_EQ(parts.loss_curve.size(), 8U);
    EXPECT_NEAR(parts.loss_curve[0], whole.loss_curve[0], 2e-3 * whole.loss_curve[0]);
    // Signs of gradients near zero are those of their rounding.
    for (size_t step = 1; step < 8; ++step) {
      EXPECT_NEAR(parts.loss_curve[step], whole.loss_curve[step], 0.15 * whole.loss_curve[step])
          << micro_batch << " at step " << step;
    }
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock again,
                             input.Tune(method, precision, micro_batch));
    EXPECT_TRUE(SameRecords(parts, again)) << micro_batch;
  }
}

// Where activations lie changes no bit, neither on the way to the block nor in its tuning.
TEST_P(MicroBatchTest, HostMemoryGivesTheDevicesBits) {
  const auto [method, precision] = GetParam();
  LlamaTuning device(false);
  LlamaTuning host(true);
  EXPECT_TRUE(device.observed().targets.is_cuda());
  EXPECT_TRUE(host.observed().targets.device().is_cpu());
  EXPECT_TRUE(host.observed().targets.equal(device.observed().targets.cpu()));
  EXPECT_TRUE(host.observed().inputs->quantized.equal(device.observed().inputs->quantized.cpu()));
  for (size_t i = 0; i < 7; ++i) {
    EXPECT_TRUE(
        host.observed().statistics[i].importance.equal(device.observed().statistics[i].importance))
        << i;
  }
  EXPECT_EQ(host.error().calibration, device.error().calibration);
  EXPECT_EQ(host.error().held_out, device.error().held_out);
  for (const int64_t micro_batch : {0, 3}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock expected,
                             device.Tune(method, precision, micro_batch));
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock actual,
                             host.Tune(method, precision, micro_batch));
    EXPECT_EQ(actual.loss_curve, expected.loss_curve) << micro_batch;
    EXPECT_TRUE(SameRecords(actual, expected)) << micro_batch;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Recipes, MicroBatchTest,
    ::testing::Combine(::testing::Values(AutoRoundMethod::kPaper, AutoRoundMethod::kLearnedScale),
                       ::testing::Values(TuningPrecision::kComputeDtype, TuningPrecision::kFp8)));

TEST_F(CudaTest, MicroBatchesByAutogradTuneLikeTheBatch) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    TinyCase input(at::kCUDA, dtype, /*samples=*/16, /*length=*/32, /*width=*/64, /*inner=*/128);
    TinyCase host(at::kCUDA, dtype, 16, 32, 64, 128);
    host.inputs.quantized = host.inputs.quantized.cpu().pin_memory();
    host.observed.targets = host.observed.targets.cpu().pin_memory();
    for (const AutoRoundMethod method : {AutoRoundMethod::kPaper, AutoRoundMethod::kLearnedScale}) {
      AutoRoundOptions options;
      options.method = method;
      options.iterations = 10;
      options.batch_size = 8;
      const auto tune = [&](TinyCase& subject, int64_t micro_batch) {
        options.micro_batch = micro_batch;
        return AutoRoundBlockQuantizer(at::kBFloat16, options).QuantizeBlock(subject.Request());
      };
      PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock whole, tune(input, 0));
      PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock parts, tune(input, 3));
      PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock hosted, tune(host, 3));
      EXPECT_EQ(hosted.loss_curve, parts.loss_curve) << dtype;
      EXPECT_TRUE(SameRecords(hosted, parts)) << dtype;
      for (size_t step = 0; step < 10; ++step) {
        EXPECT_NEAR(parts.loss_curve[step], whole.loss_curve[step], 0.05 * whole.loss_curve[step])
            << dtype << " at step " << step;
      }
    }
  }
}

TEST_F(CudaTest, MemoryFiguresAreTheDriversAndTheAllocators) {
  const CudaMemory memory = CudaMemoryInfo();
  EXPECT_GT(memory.free_bytes, 0);
  EXPECT_GT(memory.total_bytes, memory.free_bytes);
  EXPECT_GE(CudaPeakUsedBytes(), CudaPeakMemoryBytes());
  EXPECT_LE(CudaPeakUsedBytes(), memory.total_bytes);
  const CudaApi& api = *LoadedCuda();
  void* pinned = api.host_alloc(size_t{3} << 20);
  ASSERT_NE(pinned, nullptr);
  const at::Tensor host = at::from_blob(pinned, {3 << 20}, at::kByte);
  EXPECT_TRUE(host.is_pinned());
  host.fill_(7);
  EXPECT_TRUE(host.to(at::kCUDA, at::kByte, /*non_blocking=*/true).eq(7).all().item<bool>());
  api.host_free(pinned);
  EXPECT_EQ(api.host_alloc(size_t{1} << 60), nullptr) << "more than there is";
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
