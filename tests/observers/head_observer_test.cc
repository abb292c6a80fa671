// Statistics of the head's inputs against plain sums over the normalized states.
#include "observers/head_observer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "models/decoder_model.h"
#include "observers/output_error.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/tiny_llama.h"

namespace ptq {
namespace {

class HeadObserverTest : public ::testing::Test {
 protected:
  void SetUp() override {
    config_ = testing::TinyLlamaConfig();
    checkpoint_ = testing::RandomCheckpoint(config_, 4);
    PTQ_ASSERT_OK_AND_ASSIGN(model_, DecoderModel::Create(config_, checkpoint_, {}));
    PTQ_ASSERT_OK_AND_ASSIGN(head_, model_->LoadHead());
  }
  // By the definition of the norm, in float64.
  at::Tensor Normalized(const at::Tensor& hidden) const {
    const at::Tensor wide = hidden.to(at::kDouble);
    return wide * (wide.square().mean(-1, true) + config_.norm_eps).rsqrt() *
           checkpoint_.tensors.at("model.norm.weight").to(at::kDouble);
  }

  ModelConfig config_;
  testing::InMemoryCheckpoint checkpoint_;
  std::unique_ptr<DecoderModel> model_;
  LanguageModelHead head_;
};

TEST_F(HeadObserverTest, HessianAndImportanceAreSumsOverAllTokens) {
  const at::Tensor hidden = at::randn({5, 7, config_.hidden_size});
  const at::Tensor rows = Normalized(hidden).flatten(0, 1);
  const at::Tensor hessian = rows.t().matmul(rows);
  PTQ_ASSERT_OK_AND_ASSIGN(const LinearStatistics full,
                           ObserveHead(head_, "lm_head", hidden, 2, InputStatistics::kHessian));
  EXPECT_EQ(full.tokens, 35);
  EXPECT_TRUE(full.hessian.to(at::kDouble).allclose(hessian, 1e-5, 1e-4));
  PTQ_ASSERT_OK_AND_ASSIGN(const LinearStatistics light,
                           ObserveHead(head_, "lm_head", hidden, 2, InputStatistics::kImportance));
  EXPECT_EQ(light.tokens, 35);
  EXPECT_FALSE(light.hessian.defined());
  EXPECT_TRUE(light.importance.to(at::kDouble).allclose(hessian.diagonal(), 1e-5, 1e-4));
}

TEST_F(HeadObserverTest, ImportanceTakesAPartOfManyTokens) {
  const at::Tensor hidden = at::randn({1, 256, config_.hidden_size}).expand({1024, -1, -1});
  PTQ_ASSERT_OK_AND_ASSIGN(const LinearStatistics part,
                           ObserveHead(head_, "lm_head", hidden, 8, InputStatistics::kImportance));
  EXPECT_EQ(part.tokens, kImportanceTokens);
}

TEST_F(HeadObserverTest, ErrorInputsAreSpreadSamples) {
  const at::Tensor hidden = at::randn({6, 2048, config_.hidden_size});
  PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor inputs, HeadErrorInputs(head_, hidden));
  ASSERT_EQ(inputs.size(0), ErrorSamples(6, 2048) * 2048);
  const at::Tensor expected = Normalized(at::stack({hidden[0], hidden[3]})).flatten(0, 1);
  EXPECT_TRUE(inputs.to(at::kDouble).allclose(expected, 1e-5, 1e-5));
}

}  // namespace
}  // namespace ptq
