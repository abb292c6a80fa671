// What observers have of their own on CUDA, against the same on a CPU. Needs an NVIDIA GPU: label
// gpu.
#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <vector>

#include "algorithms/cuda/cuda_runtime.h"
#include "observers/fisher_observer.h"
#include "observers/observed_block.h"
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
    EXPECT_THAT(observer.Observe(ids_, {}, {},
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
