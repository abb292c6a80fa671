// The block-by-block Fisher pass against autograd through the whole model at once.
#include "observers/fisher_observer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <memory>
#include <vector>

#include "observers/sampled_labels.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/tiny_llama.h"

namespace ptq {
namespace {

using ::ptq::testing::StatusIs;
using ::testing::_;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class FisherObserverTest : public ::testing::Test {
 protected:
  void SetUp() override {
    checkpoint_ = testing::RandomCheckpoint(config_, 4);
    PTQ_ASSERT_OK_AND_ASSIGN(model_, DecoderModel::Create(config_, checkpoint_, {}));
    ids_ = at::randint(config_.vocab_size, {5, 7}, at::kLong);
  }

  FisherOptions Options() const {
    return {.micro_batch = 2, .seed = 9, .scratch_folder = ::testing::TempDir()};
  }

  absl::StatusOr<std::vector<at::Tensor>> Observe(const FisherOptions& options) {
    std::vector<at::Tensor> result(static_cast<size_t>(model_->block_count()));
    order_.clear();
    BlockLoader loader(*model_, {});
    FisherObserver observer(loader, options);
    const absl::Status status = observer.Observe(
        model_->Embed(ids_).value(), cancel_, {}, [&](int64_t block, const at::Tensor& fisher) {
          order_.push_back(block);
          result[static_cast<size_t>(block)] = fisher.clone();
          return absl::OkStatus();
        });
    if (!status.ok()) return status;
    return result;
  }

  ModelConfig config_ = testing::TinyLlamaConfig();
  testing::InMemoryCheckpoint checkpoint_;
  std::unique_ptr<DecoderModel> model_;
  at::Tensor ids_;
  CancellationToken cancel_;
  std::vector<int64_t> order_;
};

TEST_F(FisherObserverTest, IsWhatAutogradSaysOfTheWholeModel) {
  PTQ_ASSERT_OK_AND_ASSIGN(const std::vector<at::Tensor> fisher, Observe(Options()));

  const at::AutoGradMode with_grad(true);
  const RotaryTable rotary = model_->MakeRotaryTable(7);
  PTQ_ASSERT_OK_AND_ASSIGN(at::Tensor hidden, model_->Embed(ids_));
  hidden.set_requires_grad(true);
  std::vector<at::Tensor> outputs;
  std::vector<std::unique_ptr<DecoderBlock>> blocks;  // autograd needs them
  for (int64_t index = 0; index < model_->block_count(); ++index) {
    PTQ_ASSERT_OK_AND_ASSIGN(auto block, model_->LoadBlock(index));
    hidden = block->Forward(hidden, rotary);
    outputs.push_back(hidden);
    blocks.push_back(std::move(block));
  }
  PTQ_ASSERT_OK_AND_ASSIGN(const LanguageModelHead head, model_->LoadHead());
  const at::Tensor logits = head.Logits(hidden).flatten(0, 1);
  const at::Tensor labels = SampleLabels(logits.detach(), 9, 0);
  const at::Tensor loss = at::cross_entropy_loss(logits, labels, {}, at::Reduction::Sum);
  const std::vector<at::Tensor> gradients = torch::autograd::grad({loss}, outputs);
  ASSERT_EQ(fisher.size(), outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) {
    const at::Tensor y = outputs[i].detach().flatten(0, 1).to(at::kDouble);
    const at::Tensor g =
        gradients[i].flatten(0, 1).to(at::kDouble) * y.square().mean(-1, true).sqrt();
    const at::Tensor expected = g.t().mm(g) / 35.0;
    const double difference = (fisher[i].to(at::kDouble) - expected).abs().max().item<double>();
    EXPECT_LT(difference, 1e-5 * expected.abs().max().item<double>()) << "block " << i;
    EXPECT_GT(expected.abs().max().item<double>(), 0);
  }
}

TEST_F(FisherObserverTest, GoesFromTheLastBlockToTheFirstAndRepeatsItself) {
  PTQ_ASSERT_OK_AND_ASSIGN(const std::vector<at::Tensor> first, Observe(Options()));
  EXPECT_THAT(order_, ElementsAre(1, 0));
  FisherOptions on_disk = Options();
  on_disk.device_bytes = 0;
  PTQ_ASSERT_OK_AND_ASSIGN(const std::vector<at::Tensor> second, Observe(on_disk));
  FisherOptions other = Options();
  other.seed = 10;
  PTQ_ASSERT_OK_AND_ASSIGN(const std::vector<at::Tensor> third, Observe(other));
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_TRUE(first[i].equal(second[i]));
    EXPECT_FALSE(first[i].equal(third[i])) << "labels do not depend on the seed";
  }
}

TEST_F(FisherObserverTest, StopsWhenAskedAndAtTheConsumersError) {
  BlockLoader loader(*model_, {});
  FisherObserver observer(loader, Options());
  EXPECT_THAT(observer.Observe(model_->Embed(ids_).value(), cancel_, {},
                               [](int64_t, const at::Tensor&) {
                                 return absl::ResourceExhaustedError("disk is full");
                               }),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("disk is full")));
  cancel_.Cancel();
  EXPECT_THAT(Observe(Options()), StatusIs(absl::StatusCode::kCancelled, _));
}

TEST(SampleLabels, FollowTheDistribution) {
  const at::Tensor probabilities = at::tensor({0.5, 0.3, 0.15, 0.04, 0.01});
  constexpr int64_t kRows = 40000;
  const at::Tensor logits = probabilities.log().to(at::kFloat).expand({kRows, 5}) + 3.0;
  const at::Tensor counts = at::bincount(SampleLabels(logits, 1, 0), {}, 5);
  for (int64_t i = 0; i < 5; ++i) {
    const double p = probabilities[i].item<double>();
    EXPECT_NEAR(counts[i].item<double>() / kRows, p, 4 * std::sqrt(p * (1 - p) / kRows)) << i;
  }
  // Neighbouring rows and columns are independent: no label follows another more often than chance.
  const at::Tensor uniform = SampleLabels(at::zeros({kRows, 5}), 2, 0);
  const double repeats =
      uniform.narrow(0, 1, kRows - 1).eq(uniform.narrow(0, 0, kRows - 1)).sum().item<double>();
  EXPECT_NEAR(repeats / kRows, 0.2, 4 * std::sqrt(0.2 * 0.8 / kRows));
}

// A token without any probability is never drawn, however many columns there are to be unlucky in.
TEST(SampleLabels, NoiseStaysFinite) {
  at::Tensor logits = at::full({8, 1 << 20}, -60.0);
  logits.select(1, 12345).fill_(0.0);
  for (int64_t row = 0; row < 64; row += 8) {
    EXPECT_TRUE(SampleLabels(logits, 1, row).eq(12345).all().item<bool>()) << row;
  }
}

TEST(SampleLabels, DoNotDependOnHowATextIsCut) {
  const at::Tensor logits = at::randn({50, 300});
  const at::Tensor whole = SampleLabels(logits, 7, 100);
  const at::Tensor parts = at::cat({SampleLabels(logits.narrow(0, 0, 13), 7, 100),
                                    SampleLabels(logits.narrow(0, 13, 37), 7, 113)});
  EXPECT_TRUE(whole.equal(parts));
  EXPECT_FALSE(whole.equal(SampleLabels(logits, 7, 101)));
}

}  // namespace
}  // namespace ptq
