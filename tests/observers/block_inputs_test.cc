// Micro-batched runs of a block, and the loss mask.
#include "observers/block_inputs.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "models/decoder_model.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/tiny_llama.h"

namespace ptq {
namespace {

class RunBlockTest : public ::testing::Test {
 protected:
  void SetUp() override {
    checkpoint_ = testing::RandomCheckpoint(config_, 5);
    PTQ_ASSERT_OK_AND_ASSIGN(model_, DecoderModel::Create(config_, checkpoint_, {}));
    PTQ_ASSERT_OK_AND_ASSIGN(block_, model_->LoadBlock(0));
    rotary_ = model_->MakeRotaryTable(6);
    inputs_ = at::randn({7, 6, config_.hidden_size});
  }

  ModelConfig config_ = testing::TinyLlamaConfig();
  testing::InMemoryCheckpoint checkpoint_;
  std::unique_ptr<DecoderModel> model_;
  std::unique_ptr<DecoderBlock> block_;
  RotaryTable rotary_;
  at::Tensor inputs_;
};

TEST_F(RunBlockTest, EverySampleGoesThroughTheBlockOnce) {
  const at::Tensor expected = block_->Forward(inputs_, rotary_);
  for (const int64_t batch : {1, 3, 7, 100}) {
    int64_t tokens = 0;
    const at::Tensor outputs =
        RunBlock(*block_, inputs_, rotary_, batch, [&](size_t index, const at::Tensor& input) {
          tokens += index == 0 ? input.size(0) * input.size(1) : 0;
          return ApplyLinear(block_->linears()[index], block_->linears()[index].weight, input);
        });
    EXPECT_EQ(tokens, 7 * 6);
    ASSERT_EQ(outputs.sizes(), inputs_.sizes());
    EXPECT_LT((outputs - expected).abs().max().item<double>(), 1e-5) << batch;
    EXPECT_TRUE(outputs.equal(RunBlock(*block_, inputs_, rotary_, batch))) << batch;
  }
}

TEST_F(RunBlockTest, OutputsMayTakeTheInputsPlace) {
  const at::Tensor expected = RunBlock(*block_, inputs_, rotary_, 2);
  RunBlockInto(*block_, inputs_, rotary_, 2, {}, inputs_);
  EXPECT_TRUE(inputs_.equal(expected));
}

TEST_F(RunBlockTest, BuildsNoAutogradGraph) {
  at::Tensor weight = block_->linears()[0].weight.clone().requires_grad_();
  const at::Tensor outputs =
      RunBlock(*block_, inputs_, rotary_, 4, [&](size_t index, const at::Tensor& input) {
        const Linear& linear = block_->linears()[index];
        return ApplyLinear(linear, index == 0 ? weight : linear.weight, input);
      });
  EXPECT_FALSE(outputs.requires_grad());
  EXPECT_FALSE(outputs.is_inference());  // Auto-Round saves these tensors for its backward passes
}

TEST(LastPositionMaskTest, LeavesOutTheLastPositionOnly) {
  const at::Tensor mask = LastPositionMask(3, 5, at::kCPU);
  ASSERT_EQ(mask.sizes(), (std::vector<int64_t>{3, 5}));
  EXPECT_EQ(mask.scalar_type(), at::kFloat);
  EXPECT_TRUE(mask.narrow(1, 0, 4).eq(1).all().item<bool>());
  EXPECT_TRUE(mask.select(1, 4).eq(0).all().item<bool>());
}

}  // namespace
}  // namespace ptq
