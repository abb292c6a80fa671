// What observers have of their own on CUDA, against the same on a CPU. Needs an NVIDIA GPU: label
// gpu.
#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <utility>
#include <vector>

#include "algorithms/cuda/cuda_runtime.h"
#include "observers/fisher_observer.h"
#include "observers/observed_block.h"
#include "observers/sampled_labels.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/tiny_llama.h"

namespace ptq {
namespace {

using ::ptq::testing::IsOk;

class ObserversCudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_THAT(LoadCuda(), IsOk());
    config_.hidden_size = 64;
    checkpoint_ = testing::RandomCheckpoint(config_, 21);
    for (auto& [name, tensor] : checkpoint_.tensors) {
      tensor = tensor.to(at::kBFloat16).to(at::kFloat);
    }
    ids_ = at::randint(config_.vocab_size, {9, 16}, at::kLong);
  }

  std::unique_ptr<DecoderModel> Model(at::Device device, at::ScalarType dtype) const {
    return DecoderModel::Create(config_, checkpoint_, {.device = device, .dtype = dtype}).value();
  }
  ReconstructionError ErrorBehindFirstBlock(const DecoderModel& model) const {
    const auto observer =
        BlockInputObserver::Create(model, ids_, {.micro_batch = 2, .held_out = 3}).value();
    const auto block = model.LoadBlock(0).value();
    EXPECT_THAT(observer->Observe(*block), IsOk());
    std::vector<at::Tensor> weights;
    for (const Linear& linear : block->linears()) {
      weights.push_back((linear.weight * 8).round() / 8);
    }
    return observer->Advance(*block, weights).value();
  }
  std::vector<at::Tensor> Fisher(const DecoderModel& model) const {
    BlockLoader loader(model, {});
    FisherObserver observer(loader, {.micro_batch = 4, .scratch_folder = ::testing::TempDir()});
    std::vector<at::Tensor> result(static_cast<size_t>(model.block_count()));
    EXPECT_THAT(observer.Observe(model.Embed(ids_).value(), {}, {},
                                 [&](int64_t block, const at::Tensor& fisher) {
                                   result[static_cast<size_t>(block)] = fisher.cpu();
                                   return absl::OkStatus();
                                 }),
                IsOk());
    return result;
  }

  ModelConfig config_ = testing::TinyLlamaConfig();
  testing::InMemoryCheckpoint checkpoint_;
  at::Tensor ids_;
};

TEST_F(ObserversCudaTest, ErrorsBehindABlockAreThoseOfTheHost) {
  const ReconstructionError expected = ErrorBehindFirstBlock(*Model(at::kCPU, at::kFloat));
  const ReconstructionError actual = ErrorBehindFirstBlock(*Model(at::kCUDA, at::kBFloat16));
  EXPECT_GT(expected.calibration, 0.001);
  EXPECT_NEAR(actual.calibration / expected.calibration, 1, 0.05);
  EXPECT_NEAR(actual.held_out / expected.held_out, 1, 0.05);
  EXPECT_EQ(actual.held_out_samples, 3);
}

TEST_F(ObserversCudaTest, ImportanceIsTheSumOfSquares) {
  at::manual_seed(5);
  const auto model = Model(at::kCUDA, at::kBFloat16);
  const auto block = model->LoadBlock(0).value();
  // Whole slices and packs of warps, and neither.
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1024, 512}, {1300, 72}, {3, 8}}) {
    const at::Tensor input = at::randn({rows, width}).to(at::kBFloat16).cuda();
    LinearObserver observer(*block);
    observer.Record(0, input.unsqueeze(0));
    observer.Record(0, input.narrow(0, 0, 2).unsqueeze(0));
    const at::Tensor actual = observer.Finish()[0].importance;
    const at::Tensor wide = input.to(at::kDouble).square();
    const at::Tensor expected = wide.sum(0) + wide.narrow(0, 0, 2).sum(0);
    EXPECT_TRUE(actual.to(at::kDouble).allclose(expected, 1e-5)) << rows << " x " << width;
  }
}

TEST_F(ObserversCudaTest, SampledGradientsAreThoseOfTheHost) {
  at::manual_seed(6);
  for (const int64_t width : {50, 5000}) {
    const at::Tensor logits = at::randn({64, width}) * 3;
    const at::Tensor expected = SampledGradient(logits, 11, 100, at::kFloat);
    const at::Tensor actual = SampledGradient(logits.cuda(), 11, 100, at::kBFloat16);
    EXPECT_EQ(actual.scalar_type(), at::kBFloat16);
    const at::Tensor error = (actual.cpu().to(at::kFloat) - expected).abs();
    EXPECT_TRUE(error.le(expected.abs() * 0.004 + 1e-6).all().item<bool>())
        << error.max().item<float>();
    EXPECT_TRUE(SampledGradient(logits.cuda(), 11, 100, at::kBFloat16).equal(actual));
  }
  // Where one logit is all there is, its gradient is nothing.
  at::Tensor certain = at::full({3, 40}, -1e4);
  certain.select(1, 7).fill_(5);
  EXPECT_TRUE(SampledGradient(certain.cuda(), 11, 0, at::kBFloat16).eq(0).all().item<bool>());
}

// Labels are sampled from the model's own logits: rounding flips a few.
TEST_F(ObserversCudaTest, FisherMetricIsThatOfTheHost) {
  const std::vector<at::Tensor> expected = Fisher(*Model(at::kCPU, at::kFloat));
  const std::vector<at::Tensor> actual = Fisher(*Model(at::kCUDA, at::kBFloat16));
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(actual[i].scalar_type(), at::kFloat);
    EXPECT_TRUE(actual[i].equal(actual[i].t())) << i;
    const double cosine =
        ((actual[i] * expected[i]).sum() / (actual[i].norm() * expected[i].norm())).item<double>();
    EXPECT_GT(cosine, 0.95) << i;
    EXPECT_NEAR((actual[i].trace() / expected[i].trace()).item<double>(), 1, 0.1) << i;
  }
  const std::vector<at::Tensor> again = Fisher(*Model(at::kCUDA, at::kBFloat16));
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(again[i].equal(actual[i])) << i;
}

}  // namespace
}  // namespace ptq
