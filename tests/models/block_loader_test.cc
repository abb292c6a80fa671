// Blocks are the model's whatever was read ahead, kept or asked for; and the reading overlaps.
#include "models/block_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <map>
#include <mutex>

#include "tests/testing/status_matchers.h"
#include "tests/testing/tiny_llama.h"

namespace ptq {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IsOk;
using ::testing::Pair;
using testing::StatusIs;

// Counts what is asked of a checkpoint, and can hold one block's tensors back.
class WatchedCheckpoint final : public CheckpointReader {
 public:
  explicit WatchedCheckpoint(const testing::InMemoryCheckpoint& checkpoint)
      : checkpoint_(checkpoint) {}

  absl::StatusOr<StoredTensor> Describe(const std::string& name) const override {
    return checkpoint_.Describe(name);
  }
  absl::Status ReadBytes(const std::string& name, int64_t offset, int64_t size,
                         void* out) const override {
    if (!held.empty() && name.find(held) != std::string::npos) gate.wait();
    if (offset == 0) {
      const std::lock_guard<std::mutex> lock(mutex_);
      ++reads_[BlockOf(name)];
    }
    return checkpoint_.ReadBytes(name, offset, size, out);
  }
  void Prefetch(const std::string& name) const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++prefetches_[BlockOf(name)];
  }
  bool Contains(const std::string& name) const override { return checkpoint_.Contains(name); }

  // Since the last call: tensors by block.
  std::map<int, int> Reads() const { return Take(reads_); }
  std::map<int, int> Prefetches() const { return Take(prefetches_); }

  std::string held;  // tensors with this in their names wait for `gate`
  std::shared_future<void> gate;

 private:
  static int BlockOf(const std::string& name) {  // "model.layers.3.…"
    return name[std::string("model.layers.").size()] - '0';
  }
  std::map<int, int> Take(std::map<int, int>& counts) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(counts, {});
  }

  const testing::InMemoryCheckpoint& checkpoint_;
  mutable std::mutex mutex_;
  mutable std::map<int, int> reads_;
  mutable std::map<int, int> prefetches_;
};

class BlockLoaderTest : public ::testing::Test {
 protected:
  static constexpr int64_t kBlocks = 4;
  static constexpr int kTensors = 7 * 2 + 2;  // of a block: weights, biases, norms
  static constexpr int64_t kNone = BlockLoader::kNone;

  BlockLoaderTest() { config_.num_hidden_layers = kBlocks; }

  void Load(at::ScalarType stored = at::kFloat, at::ScalarType compute = at::kFloat) {
    checkpoint_ = testing::RandomCheckpoint(config_, 17, stored);
    PTQ_ASSERT_OK_AND_ASSIGN(model_, DecoderModel::Create(config_, watched_, {.dtype = compute}));
    PTQ_ASSERT_OK_AND_ASSIGN(expected_,
                             DecoderModel::Create(config_, checkpoint_, {.dtype = compute}));
    block_bytes_ = 0;
    for (const TableTensor& row : model_->BlockTensors(0)) {
      int64_t elements = 1;
      for (const int64_t size : row.shape) elements *= size;
      block_bytes_ += elements * static_cast<int64_t>(c10::elementSize(compute));
    }
  }

  void ExpectIsBlock(const DecoderBlock& block, int64_t index) {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto expected, expected_->LoadBlock(index));
    ASSERT_EQ(block.name(), expected->name());
    for (size_t i = 0; i < block.linears().size(); ++i) {
      EXPECT_TRUE(block.linears()[i].weight.equal(expected->linears()[i].weight));
      EXPECT_TRUE(block.linears()[i].bias.equal(expected->linears()[i].bias));
    }
    const RotaryTable rotary = model_->MakeRotaryTable(3);
    const at::Tensor hidden =
        at::ones({1, 3, config_.hidden_size}, at::TensorOptions().dtype(model_->options().dtype));
    EXPECT_TRUE(block.Forward(hidden, rotary).equal(expected->Forward(hidden, rotary)));  // norms
  }

  ModelConfig config_ = testing::TinyLlamaConfig();
  testing::InMemoryCheckpoint checkpoint_;
  WatchedCheckpoint watched_{checkpoint_};
  std::unique_ptr<DecoderModel> model_;
  std::unique_ptr<DecoderModel> expected_;
  int64_t block_bytes_ = 0;
};

// Up, down, and by jumps that contradict what was announced; blocks in hand stay what they are.
TEST_F(BlockLoaderTest, BlocksAreTheModelsInAnyOrder) {
  const std::vector<std::pair<int64_t, int64_t>> asked = {
      {0, 1},     {1, 2}, {2, 3}, {3, 3}, {3, 2}, {2, 1},    {1, 0},
      {0, kNone}, {2, 3}, {0, 1}, {1, 1}, {3, 9}, {0, kNone}};
  for (const auto& [stored, compute] :
       {std::pair(at::kFloat, at::kFloat), std::pair(at::kBFloat16, at::kBFloat16),
        std::pair(at::kBFloat16, at::kFloat), std::pair(at::kFloat, at::kBFloat16)}) {
    Load(stored, compute);
    for (const bool stage : {false, true}) {
      for (const int64_t kept : {int64_t{0}, 3 * block_bytes_}) {
        BlockLoader loader(*model_, {.stage = stage, .kept_bytes = kept});
        std::vector<std::shared_ptr<const DecoderBlock>> blocks;
        for (const auto& [index, next] : asked) {
          PTQ_ASSERT_OK_AND_ASSIGN(blocks.emplace_back(), loader.Load(index, next));
        }
        for (size_t i = 0; i < asked.size(); ++i) ExpectIsBlock(*blocks[i], asked[i].first);
      }
    }
  }
}

TEST_F(BlockLoaderTest, TheNextBlockIsReadWhileTheCallerHasTheFirst) {
  Load();
  std::promise<void> opened;
  watched_.gate = opened.get_future().share();
  watched_.held = "model.layers.1.";
  BlockLoader loader(*model_, {.stage = true});
  // Would wait for ever if it waited for block 1.
  PTQ_ASSERT_OK_AND_ASSIGN(const auto first, loader.Load(0, 1));
  ExpectIsBlock(*first, 0);
  opened.set_value();
  PTQ_ASSERT_OK_AND_ASSIGN(const auto second, loader.Load(1, kNone));
  ExpectIsBlock(*second, 1);
  EXPECT_THAT(watched_.Reads(), ElementsAre(Pair(0, kTensors), Pair(1, kTensors)));
}

TEST_F(BlockLoaderTest, EachBlockIsReadOnceAPass) {
  Load();
  BlockLoader loader(*model_, {.stage = true});
  for (int64_t index = 0; index < kBlocks; ++index) {
    ASSERT_THAT(loader.Load(index, index + 1), IsOk());
  }
  const std::map<int, int> reads = watched_.Reads();
  EXPECT_EQ(reads.size(), kBlocks);
  EXPECT_THAT(reads, Each(Pair(::testing::_, kTensors)));
}

TEST_F(BlockLoaderTest, WithoutStagingThePageCacheAloneIsAskedFor) {
  Load();
  BlockLoader loader(*model_, {});
  ASSERT_THAT(loader.Load(0, 1), IsOk());
  ASSERT_THAT(loader.Load(1, kNone), IsOk());
  std::map<int, int> prefetches;
  while (prefetches[1] < kTensors) {  // nobody waits for a hint
    for (const auto& [block, count] : watched_.Prefetches()) prefetches[block] += count;
  }
  EXPECT_THAT(prefetches, ElementsAre(Pair(1, kTensors)));
  EXPECT_THAT(watched_.Reads(), ElementsAre(Pair(0, kTensors), Pair(1, kTensors)));
}

TEST_F(BlockLoaderTest, BlocksThatFitAreReadOnceForAll) {
  Load();
  // Alignment adds less than a block.
  BlockLoader loader(*model_, {.stage = true, .kept_bytes = 3 * block_bytes_});
  const auto up_and_down = [&] {
    for (int64_t index = 0; index < kBlocks; ++index) {
      ASSERT_THAT(loader.Load(index, std::min(index + 1, kBlocks - 1)), IsOk());
    }
    for (int64_t index = kBlocks - 1; index >= 0; --index) {
      ASSERT_THAT(loader.Load(index, index - 1), IsOk());
    }
  };
  up_and_down();
  const std::map<int, int> first = watched_.Reads();
  EXPECT_EQ(first.at(0), kTensors);
  EXPECT_EQ(first.at(1), kTensors);
  EXPECT_GT(first.at(3), kTensors);
  up_and_down();
  const std::map<int, int> second = watched_.Reads();
  EXPECT_EQ(second.count(0), 0);
  EXPECT_EQ(second.count(1), 0);
  EXPECT_GT(second.at(3), 0);
}

TEST_F(BlockLoaderTest, NoBlockIsKeptBeyondTheBudget) {
  Load();
  BlockLoader loader(*model_, {.kept_bytes = block_bytes_ - 1});
  ASSERT_THAT(loader.Load(0, kNone), IsOk());
  ASSERT_THAT(loader.Load(0, kNone), IsOk());
  EXPECT_EQ(watched_.Reads().at(0), 2 * kTensors);
}

TEST_F(BlockLoaderTest, AnErrorIsThatOfTheBlockThatIsAskedFor) {
  Load();
  checkpoint_.tensors.erase("model.layers.1.mlp.up_proj.weight");
  checkpoint_.tensors["model.layers.2.mlp.up_proj.weight"] = at::ones({2, 2});
  for (const bool stage : {false, true}) {
    BlockLoader loader(*model_, {.stage = stage});
    EXPECT_THAT(loader.Load(0, 1), IsOk());
    EXPECT_THAT(loader.Load(1, 2), StatusIs(absl::StatusCode::kNotFound,
                                            HasSubstr("model.layers.1.mlp.up_proj.weight")));
    EXPECT_THAT(loader.Load(0, 2), IsOk());
    EXPECT_THAT(loader.Load(2, 3), StatusIs(absl::StatusCode::kInvalidArgument,
                                            HasSubstr("model.layers.2.mlp.up_proj.weight")));
    EXPECT_THAT(loader.Load(3, kNone), IsOk());
    for (const int64_t none : {kNone, kBlocks}) {
      EXPECT_THAT(loader.Load(none, 0), StatusIs(absl::StatusCode::kInvalidArgument,
                                                 HasSubstr("the model has 4 blocks")));
    }
  }
}

TEST_F(BlockLoaderTest, ALoaderThatNobodyAsksAnyMoreEndsItsReading) {
  Load();
  for (const bool stage : {false, true}) {
    BlockLoader loader(*model_, {.stage = stage});
    ASSERT_THAT(loader.Load(0, 1), IsOk());
  }
}

}  // namespace
}  // namespace ptq
