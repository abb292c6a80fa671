// The two chains through a model, and what is observed of each block.
#include "observers/observed_block.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/routed_block.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/tiny_llama.h"

namespace ptq {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::StatusIs;

class BlockInputObserverTest : public ::testing::Test {
 protected:
  void SetUp() override {
    checkpoint_ = testing::RandomCheckpoint(config_, 21);
    PTQ_ASSERT_OK_AND_ASSIGN(model_, DecoderModel::Create(config_, checkpoint_, {}));
    PTQ_ASSERT_OK_AND_ASSIGN(first_, model_->LoadBlock(0));
    PTQ_ASSERT_OK_AND_ASSIGN(second_, model_->LoadBlock(1));
    ids_ = at::randint(config_.vocab_size, {5, 6}, at::kLong);
    PTQ_ASSERT_OK_AND_ASSIGN(observer_,
                             BlockInputObserver::Create(*model_, ids_, {.micro_batch = 2}));
  }

  static std::vector<at::Tensor> Rounded(const DecoderBlock& block) {
    std::vector<at::Tensor> weights;
    for (const Linear& linear : block.linears()) {
      weights.push_back((linear.weight * 4).round() / 4);
    }
    return weights;
  }

  at::Tensor Run(const DecoderBlock& block, const at::Tensor& inputs,
                 const std::vector<at::Tensor>& weights) {
    return RunBlock(block, inputs, observer_->rotary(), 2,
                    [&](size_t index, const at::Tensor& input) {
                      return ApplyLinear(block.linears()[index], weights[index], input);
                    });
  }

  ModelConfig config_ = testing::TinyLlamaConfig();
  testing::InMemoryCheckpoint checkpoint_;
  std::unique_ptr<DecoderModel> model_;
  std::unique_ptr<DecoderBlock> first_;
  std::unique_ptr<DecoderBlock> second_;
  at::Tensor ids_;
  std::unique_ptr<BlockInputObserver> observer_;
};

TEST_F(BlockInputObserverTest, StartsWithTheEmbeddingInBothChains) {
  PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor embedded, model_->Embed(ids_));
  EXPECT_TRUE(observer_->inputs().full_precision.equal(embedded));
  EXPECT_TRUE(observer_->inputs().quantized.equal(embedded));
  EXPECT_TRUE(observer_->inputs().token_mask.equal(LastPositionMask(5, 6, at::kCPU)));
  EXPECT_EQ(observer_->rotary().cos.size(0), 6);
}

TEST_F(BlockInputObserverTest, ChainsSeparateBehindAQuantizedBlock) {
  const at::Tensor embedded = observer_->inputs().full_precision.clone();
  PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock observed, observer_->Observe(*first_));
  EXPECT_EQ(observed.block, first_.get());
  EXPECT_EQ(observed.micro_batch, 2);
  EXPECT_TRUE(observed.targets.equal(RunBlock(*first_, embedded, observer_->rotary(), 2)));
  EXPECT_TRUE(observed.inputs->full_precision.equal(embedded));

  const std::vector<at::Tensor> rounded = Rounded(*first_);
  const at::Tensor quantized = Run(*first_, embedded, rounded);
  ASSERT_THAT(observer_->Advance(*observed.block, rounded), testing::IsOk());
  EXPECT_TRUE(observer_->inputs().full_precision.equal(observed.targets));
  EXPECT_TRUE(observer_->inputs().quantized.equal(quantized));
  EXPECT_FALSE(quantized.equal(observed.targets));
}

TEST_F(BlockInputObserverTest, StatisticsAreOfTheQuantizedChainTargetsOfTheOther) {
  PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock before, observer_->Observe(*first_));
  ASSERT_THAT(observer_->Advance(*before.block, Rounded(*first_)), testing::IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock observed, observer_->Observe(*second_));

  LinearObserver expected(*second_);
  RunBlock(*second_, observer_->inputs().quantized, observer_->rotary(), 2, expected.Observe());
  const std::vector<LinearStatistics> statistics = expected.Finish();
  ASSERT_EQ(observed.statistics.size(), statistics.size());
  for (size_t i = 0; i < statistics.size(); ++i) {
    EXPECT_EQ(observed.statistics[i].tokens, 5 * 6);
    EXPECT_TRUE(observed.statistics[i].importance.equal(statistics[i].importance)) << i;
  }
  EXPECT_TRUE(observed.targets.equal(
      RunBlock(*second_, observer_->inputs().full_precision, observer_->rotary(), 2)));
}

// The chains go the same ways to the same bits, whatever is collected on them.
TEST_F(BlockInputObserverTest, OnlyWhatIsAskedForIsCollected) {
  for (const InputStatistics asked : {InputStatistics::kNone, InputStatistics::kHessian}) {
    PTQ_ASSERT_OK_AND_ASSIGN(observer_,
                             BlockInputObserver::Create(*model_, ids_, {.micro_batch = 2}));
    PTQ_ASSERT_OK_AND_ASSIGN(
        const auto other,
        BlockInputObserver::Create(*model_, ids_, {.micro_batch = 2, .statistics = asked}));
    for (const auto* block : {first_.get(), second_.get()}) {
      PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock expected, observer_->Observe(*block));
      PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock observed, other->Observe(*block));
      EXPECT_TRUE(observed.targets.equal(expected.targets));
      EXPECT_TRUE(observed.inputs->quantized.equal(expected.inputs->quantized));
      if (asked == InputStatistics::kNone) {
        EXPECT_TRUE(observed.statistics.empty());
      } else {
        ASSERT_EQ(observed.statistics.size(), expected.statistics.size());
        EXPECT_TRUE(observed.statistics[6].hessian.defined());
        EXPECT_TRUE(at::allclose(observed.statistics[6].importance,
                                 expected.statistics[6].importance, 1e-6, 0));
      }
      EXPECT_FALSE(expected.statistics[6].hessian.defined());
      ASSERT_THAT(observer_->Advance(*block, Rounded(*block)), testing::IsOk());
      ASSERT_THAT(other->Advance(*block, Rounded(*block)), testing::IsOk());
    }
  }
}

// What does not look at the full-precision chain sees the same without it.
TEST_F(BlockInputObserverTest, TheQuantizedChainGoesItsWayAlone) {
  PTQ_ASSERT_OK_AND_ASSIGN(
      const auto alone,
      BlockInputObserver::Create(*model_, ids_, {.micro_batch = 2, .full_precision = false}));
  PTQ_ASSERT_OK_AND_ASSIGN(
      const auto replayed,
      BlockInputObserver::Create(*model_, ids_, {.micro_batch = 2, .full_precision = false}));
  for (const auto* block : {first_.get(), second_.get()}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock expected, observer_->Observe(*block));
    PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock observed, alone->Observe(*block));
    EXPECT_FALSE(observed.targets.defined());
    EXPECT_FALSE(observed.inputs->full_precision.defined());
    EXPECT_TRUE(observed.inputs->quantized.equal(expected.inputs->quantized));
    ASSERT_EQ(observed.statistics.size(), expected.statistics.size());
    for (size_t i = 0; i < expected.statistics.size(); ++i) {
      EXPECT_EQ(observed.statistics[i].tokens, 5 * 6);
      EXPECT_TRUE(observed.statistics[i].importance.equal(expected.statistics[i].importance)) << i;
    }
    const std::vector<at::Tensor> rounded = Rounded(*block);
    ASSERT_THAT(observer_->Advance(*block, rounded), testing::IsOk());
    PTQ_ASSERT_OK_AND_ASSIGN(const ReconstructionError error, alone->Advance(*block, rounded));
    EXPECT_EQ(error.held_out_samples, 0);
    ASSERT_THAT(replayed->Replay(*block, rounded), testing::IsOk());
    EXPECT_TRUE(alone->inputs().quantized.equal(observer_->inputs().quantized));
    EXPECT_TRUE(replayed->inputs().quantized.equal(observer_->inputs().quantized));
  }
}

TEST_F(BlockInputObserverTest, AnUndefinedWeightMeansTheBlocksOwn) {
  const at::Tensor embedded = observer_->inputs().full_precision.clone();
  PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock observed, observer_->Observe(*first_));
  std::vector<at::Tensor> weights = Rounded(*first_);
  std::vector<at::Tensor> expected = weights;
  weights[3] = at::Tensor();
  expected[3] = first_->linears()[3].weight;
  ASSERT_THAT(observer_->Advance(*observed.block, weights), testing::IsOk());
  EXPECT_TRUE(observer_->inputs().quantized.equal(Run(*first_, embedded, expected)));
}

TEST_F(BlockInputObserverTest, ChainsStayEqualWhileNothingIsQuantized) {
  PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock first, observer_->Observe(*first_));
  ASSERT_THAT(observer_->Advance(*first.block, std::vector<at::Tensor>(7)), testing::IsOk());
  EXPECT_TRUE(observer_->inputs().quantized.equal(first.targets));
  const at::Tensor entering = observer_->inputs().quantized.clone();

  PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock second, observer_->Observe(*second_));
  const std::vector<at::Tensor> rounded = Rounded(*second_);
  const at::Tensor expected = Run(*second_, entering, rounded);
  ASSERT_THAT(observer_->Advance(*second.block, rounded), testing::IsOk());
  EXPECT_TRUE(observer_->inputs().full_precision.equal(second.targets));
  EXPECT_TRUE(observer_->inputs().quantized.equal(expected));
}

TEST_F(BlockInputObserverTest, HeldOutSamplesGoAlongUnseen) {
  const at::Tensor more = at::cat({ids_, at::randint(config_.vocab_size, {3, 6}, at::kLong)});
  PTQ_ASSERT_OK_AND_ASSIGN(const auto with, BlockInputObserver::Create(
                                                *model_, more, {.micro_batch = 2, .held_out = 3}));
  PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock alone, observer_->Observe(*first_));
  PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock observed, with->Observe(*first_));
  // What quantizers see is the same, to the bit.
  EXPECT_TRUE(observed.targets.equal(alone.targets));
  EXPECT_TRUE(observed.inputs->quantized.equal(alone.inputs->quantized));
  EXPECT_TRUE(observed.inputs->token_mask.equal(alone.inputs->token_mask));
  EXPECT_TRUE(observed.statistics[6].importance.equal(alone.statistics[6].importance));

  const std::vector<at::Tensor> rounded = Rounded(*first_);
  PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor embedded, model_->Embed(more));
  const at::Tensor target = RunBlock(*first_, embedded, with->rotary(), 8);
  const at::Tensor output = Run(*first_, embedded, rounded);
  const at::Tensor error = ((output - target).square().sum(-1) / target.square().sum(-1))
                               .narrow(1, 0, 5);  // the last position is masked
  ASSERT_THAT(observer_->Advance(*first_, rounded), testing::IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(const ReconstructionError measured, with->Advance(*first_, rounded));
  EXPECT_NEAR(measured.calibration, error.narrow(0, 0, 5).mean().item<double>(), 1e-5);
  EXPECT_NEAR(measured.held_out, error.narrow(0, 5, 3).mean().item<double>(), 1e-5);
  EXPECT_EQ(measured.held_out_samples, 3);
  EXPECT_TRUE(with->inputs().quantized.equal(observer_->inputs().quantized));
  EXPECT_TRUE(with->inputs().full_precision.equal(observer_->inputs().full_precision));
}

// Two chains instead of three, by overwriting one; the bits are the same.
TEST_F(BlockInputObserverTest, ChainsInHostMemoryGiveTheSameBits) {
  int allocated = 0;
  BlockInputOptions options{.micro_batch = 2, .held_out = 1};
  PTQ_ASSERT_OK_AND_ASSIGN(const auto expected, BlockInputObserver::Create(*model_, ids_, options));
  options.allocate = [&](at::IntArrayRef shape, at::ScalarType dtype) {
    ++allocated;
    return at::empty(shape, dtype);
  };
  PTQ_ASSERT_OK_AND_ASSIGN(const auto host, BlockInputObserver::Create(*model_, ids_, options));
  for (const auto* block : {first_.get(), second_.get()}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock a, expected->Observe(*block));
    PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock b, host->Observe(*block));
    EXPECT_TRUE(b.targets.equal(a.targets));
    EXPECT_TRUE(b.inputs->quantized.equal(a.inputs->quantized));
    EXPECT_TRUE(b.statistics[6].importance.equal(a.statistics[6].importance));
    const std::vector<at::Tensor> rounded = Rounded(*block);
    PTQ_ASSERT_OK_AND_ASSIGN(const ReconstructionError error_a, expected->Advance(*block, rounded));
    PTQ_ASSERT_OK_AND_ASSIGN(const ReconstructionError error_b, host->Advance(*block, rounded));
    EXPECT_EQ(error_b.calibration, error_a.calibration);
    EXPECT_EQ(error_b.held_out, error_a.held_out);
    EXPECT_TRUE(host->inputs().quantized.equal(expected->inputs().quantized));
    EXPECT_TRUE(host->inputs().full_precision.equal(expected->inputs().full_precision));
  }
  EXPECT_EQ(allocated, 2);
}

TEST_F(BlockInputObserverTest, AnotherMicroBatchHoldsFromTheNextBlockOn) {
  observer_->set_micro_batch(5);
  PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock observed, observer_->Observe(*first_));
  EXPECT_EQ(observed.micro_batch, 5);
  EXPECT_TRUE(observed.targets.equal(
      RunBlock(*first_, observer_->inputs().full_precision, observer_->rotary(), 5)));
}

TEST_F(BlockInputObserverTest, ReplayGivesTheBitsOfObserving) {
  PTQ_ASSERT_OK_AND_ASSIGN(const auto replayed,
                           BlockInputObserver::Create(*model_, ids_, {.micro_batch = 2}));
  PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock observed, observer_->Observe(*first_));
  const std::vector<at::Tensor> rounded = Rounded(*first_);
  ASSERT_THAT(observer_->Advance(*observed.block, rounded), testing::IsOk());
  ASSERT_THAT(replayed->Replay(*first_, rounded), testing::IsOk());
  EXPECT_TRUE(replayed->inputs().quantized.equal(observer_->inputs().quantized));
  EXPECT_TRUE(replayed->inputs().full_precision.equal(observer_->inputs().full_precision));
}

// Importance of a long calibration comes from every second micro-batch, unless an expert has tokens
// in the others alone.
TEST_F(BlockInputObserverTest, ExpertsThatTheSpreadTokensMissSeeTheOthers) {
  const testing::RoutedBlock block;
  // Token t names expert t % 4.
  at::Tensor& embedding = checkpoint_.tensors["model.embed_tokens.weight"];
  embedding = testing::RoutedBlock::Hidden({0, 1, 2, 3}, 13)
                  .transpose(0, 1)
                  .flatten(0, 1)
                  .narrow(0, 0, config_.vocab_size);
  const auto observe = [&](int64_t odd_sample_of_expert_one) {
    at::Tensor ids = at::randint(12, {132, 1024}, at::kLong).mul_(4);
    ids.narrow(0, 64, 10).add_(2);
    ids.select(0, odd_sample_of_expert_one).add_(1);
    ids.select(0, 100).narrow(0, 0, 1).div_(4, "floor").mul_(4).add_(3);
    return ids;
  };
  const auto tokens = [&](const at::Tensor& ids) {
    auto observer =
        BlockInputObserver::Create(*model_, ids, {.micro_batch = 1, .full_precision = false});
    auto observed = (*observer)->Observe(block);
    EXPECT_THAT(observed, testing::IsOk());
    EXPECT_EQ(observed->tokens.size(), block.linears().size());
    std::vector<int64_t> of_experts;
    for (size_t i = 0; i < observed->tokens.size(); i += 3) {
      of_experts.push_back(observed->tokens[i]);
      EXPECT_EQ(observed->statistics[i].tokens, observed->tokens[i]);
    }
    return of_experts;
  };
  EXPECT_THAT(tokens(observe(2)), ElementsAre(59 * 1024 + 1023, 1024, 5 * 1024, 1));
  EXPECT_THAT(tokens(observe(3)), ElementsAre(120 * 1024 + 1023, 1024, 10 * 1024, 1));
}

TEST_F(BlockInputObserverTest, TokensAreCountedWithoutStatisticsToo) {
  PTQ_ASSERT_OK_AND_ASSIGN(
      observer_, BlockInputObserver::Create(
                     *model_, ids_, {.micro_batch = 2, .statistics = InputStatistics::kNone}));
  PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock observed, observer_->Observe(*first_));
  EXPECT_EQ(observed.tokens, std::vector<int64_t>(first_->linears().size(), ids_.numel()));
}

TEST_F(BlockInputObserverTest, WrongArgumentsAreRefused) {
  EXPECT_THAT(BlockInputObserver::Create(*model_, ids_, {.held_out = 5}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("held out")));
  EXPECT_THAT(BlockInputObserver::Create(*model_, ids_, {.micro_batch = 0}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("micro-batch")));
  EXPECT_THAT(BlockInputObserver::Create(*model_, ids_, {.held_out = 1, .full_precision = false}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no full-precision chain")));
  PTQ_ASSERT_OK_AND_ASSIGN(const ObservedBlock observed, observer_->Observe(*first_));
  EXPECT_THAT(observer_->Advance(*observed.block, {}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("0 quantized weights were given for 7 linear layers")));
}

}  // namespace
}  // namespace ptq
