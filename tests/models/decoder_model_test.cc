// Loading piece by piece: dtypes, tied heads, and what is said about a checkpoint that doesn't fit.
#include "models/decoder_model.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/testing/status_matchers.h"
#include "tests/testing/tiny_llama.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

class DecoderModelTest : public ::testing::Test {
 protected:
  void Load(at::ScalarType stored = at::kFloat) {
    checkpoint_ = testing::RandomCheckpoint(config_, 11, stored);
    PTQ_ASSERT_OK_AND_ASSIGN(model_, DecoderModel::Create(config_, checkpoint_, {}));
  }

  ModelConfig config_ = testing::TinyLlamaConfig();
  testing::InMemoryCheckpoint checkpoint_;
  std::unique_ptr<DecoderModel> model_;
};

TEST_F(DecoderModelTest, HalfPrecisionCheckpointsAreWidenedWithoutChange) {
  for (const at::ScalarType stored : {at::kHalf, at::kBFloat16}) {
    Load(stored);
    PTQ_ASSERT_OK_AND_ASSIGN(const auto block, model_->LoadBlock(0));
    for (const Linear& linear : block->linears()) {
      EXPECT_EQ(linear.weight.scalar_type(), at::kFloat);
      EXPECT_TRUE(linear.weight.to(stored).equal(checkpoint_.tensors[linear.module + ".weight"]));
      EXPECT_TRUE(linear.bias.to(stored).equal(checkpoint_.tensors[linear.module + ".bias"]));
    }
  }
}

TEST_F(DecoderModelTest, EmbedLooksTokensUp) {
  Load(at::kHalf);
  const at::Tensor ids = at::tensor({1, 49, 0, 7, 7, 2}, at::kLong).view({2, 3});
  PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor hidden, model_->Embed(ids));
  ASSERT_EQ(hidden.sizes(), (std::vector<int64_t>{2, 3, config_.hidden_size}));
  const at::Tensor table = checkpoint_.tensors["model.embed_tokens.weight"].to(at::kFloat);
  EXPECT_TRUE(hidden[0][1].equal(table[49]));
  EXPECT_TRUE(hidden[1][2].equal(table[2]));
  const at::Tensor many = at::arange(100, at::kLong).remainder(50).view({2, 50});
  PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor all, model_->Embed(many));
  EXPECT_TRUE(all[1].equal(table));
  // Into memory of the caller's.
  at::Tensor made;
  PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor elsewhere,
                           model_->Embed(ids, [&](at::IntArrayRef shape, at::ScalarType dtype) {
                             return made = at::empty(shape, dtype);
                           }));
  EXPECT_TRUE(elsewhere.is_same(made));
  EXPECT_TRUE(elsewhere.equal(hidden));
}

TEST_F(DecoderModelTest, TokensOutsideOfTheVocabularyAreRefused) {
  Load();
  EXPECT_THAT(model_->Embed(at::full({1, 4}, 50, at::kLong)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("50")));
  EXPECT_THAT(model_->Embed(at::full({1, 4}, -1, at::kLong)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("-1")));
  EXPECT_THAT(model_->Embed(at::full({4}, 1, at::kLong)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("[samples, length]")));
}

TEST_F(DecoderModelTest, TheHeadIsItsOwnMatrixOrTheEmbedding) {
  for (const bool tied : {false, true}) {
    config_.tie_word_embeddings = tied;
    Load();
    PTQ_ASSERT_OK_AND_ASSIGN(const LanguageModelHead head, model_->LoadHead());
    EXPECT_TRUE(head.head_weight.equal(
        checkpoint_.tensors[tied ? "model.embed_tokens.weight" : "lm_head.weight"]));
    const at::Tensor hidden = at::randn({2, 3, config_.hidden_size}, at::kDouble);
    const at::Tensor norm = hidden / (hidden.pow(2).mean({-1}, true) + config_.norm_eps).sqrt() *
                            checkpoint_.tensors["model.norm.weight"];
    const at::Tensor expected = at::matmul(norm, head.head_weight.to(at::kDouble).t());
    const at::Tensor logits = head.Logits(hidden.to(at::kFloat));
    EXPECT_EQ(logits.scalar_type(), at::kFloat);
    EXPECT_LT((logits - expected).abs().max().item<double>(), 1e-5);
  }
}

TEST_F(DecoderModelTest, LogitsAreFloat32WhateverTheComputeDtype) {
  checkpoint_ = testing::RandomCheckpoint(config_, 11, at::kBFloat16);
  PTQ_ASSERT_OK_AND_ASSIGN(model_,
                           DecoderModel::Create(config_, checkpoint_, {.dtype = at::kBFloat16}));
  PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor hidden, model_->Embed(at::ones({1, 4}, at::kLong)));
  EXPECT_EQ(hidden.scalar_type(), at::kBFloat16);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto block, model_->LoadBlock(0));
  const at::Tensor output = block->Forward(hidden, model_->MakeRotaryTable(4));
  EXPECT_EQ(output.scalar_type(), at::kBFloat16);
  PTQ_ASSERT_OK_AND_ASSIGN(const LanguageModelHead head, model_->LoadHead());
  EXPECT_EQ(head.Logits(output).scalar_type(), at::kFloat);
}

TEST_F(DecoderModelTest, AHeadInAnotherDtypeIsWidenedInPieces) {
  config_.vocab_size = 70000;  // two pieces of 2^22 elements at width 96, and a rest
  config_.hidden_size = 96;
  checkpoint_ = testing::RandomCheckpoint(config_, 12, at::kBFloat16);
  PTQ_ASSERT_OK_AND_ASSIGN(model_, DecoderModel::Create(config_, checkpoint_, {}));
  PTQ_ASSERT_OK_AND_ASSIGN(const LanguageModelHead head, model_->LoadHead());
  EXPECT_EQ(head.head_weight.scalar_type(), at::kBFloat16);
  const at::Tensor wide = head.head_weight.to(at::kDouble);
  const at::Tensor states = at::randn({3, 96});
  EXPECT_TRUE(at::allclose(head.Project(states).to(at::kDouble),
                           states.to(at::kDouble).mm(wide.t()), 1e-5, 1e-5));
  const at::Tensor gradient = at::randn({3, 70000});
  EXPECT_TRUE(at::allclose(head.ProjectBackward(gradient, at::Tensor()).to(at::kDouble),
                           gradient.to(at::kDouble).mm(wide), 1e-4, 1e-3));
}

TEST_F(DecoderModelTest, DividedAndCappedLogitsHaveTheirGradient) {
  config_.logits_divisor = 1.7;
  for (const double cap : {0.0, 2.0}) {
    config_.logits_soft_cap = cap;
    Load();
    PTQ_ASSERT_OK_AND_ASSIGN(const LanguageModelHead head, model_->LoadHead());
    at::Tensor states = at::randn({4, config_.hidden_size}, at::kDouble).requires_grad_();
    at::Tensor expected = at::matmul(states, head.head_weight.to(at::kDouble).t()) / 1.7;
    if (cap > 0) expected = cap * (expected / cap).tanh();
    const at::Tensor logits = head.Project(states.detach().to(at::kFloat));
    EXPECT_LT((logits - expected).abs().max().item<double>(), 1e-5);
    const at::Tensor gradient = at::randn(logits.sizes());
    (expected * gradient).sum().backward();
    const at::Tensor ours = head.ProjectBackward(gradient, logits);
    EXPECT_LT((ours - states.grad()).abs().max().item<double>(), 1e-5) << cap;
  }
}

TEST_F(DecoderModelTest, EmbeddingsAreScaledAndGetTheirPositions) {
  config_.model_type = "opt";
  config_.norm = NormKind::kLayer;
  config_.position_offset = 2;
  config_.embedding_multiplier = 2.5;
  Load();
  const at::Tensor rows = checkpoint_.tensors["model.decoder.embed_tokens.weight"];
  const at::Tensor positions = checkpoint_.tensors["model.decoder.embed_positions.weight"];
  EXPECT_EQ(positions.size(0), config_.max_position_embeddings + 2);
  const at::Tensor ids = at::tensor({1, 49, 0, 7, 7, 2}, at::kLong).view({2, 3});
  PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor hidden, model_->Embed(ids));
  EXPECT_TRUE(hidden[1][2].equal(rows[2] * 2.5 + positions[4]));
  EXPECT_TRUE(hidden[0][0].equal(rows[1] * 2.5 + positions[2]));
  PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor elsewhere,
                           model_->Embed(ids, [&](at::IntArrayRef shape, at::ScalarType dtype) {
                             return at::empty(shape, dtype);
                           }));
  EXPECT_TRUE(elsewhere.equal(hidden));
  EXPECT_THAT(model_->Embed(at::ones({1, config_.max_position_embeddings + 1}, at::kLong)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("more than the model has")));
}

TEST_F(DecoderModelTest, AMultiplierMayBeRoundedToTheComputeDtype) {
  config_.embedding_multiplier = std::sqrt(3072.0);  // 55.4256: 55.5 in bfloat16
  for (const bool rounded : {false, true}) {
    config_.round_embedding_multiplier = rounded;
    checkpoint_ = testing::RandomCheckpoint(config_, 11, at::kBFloat16);
    PTQ_ASSERT_OK_AND_ASSIGN(model_,
                             DecoderModel::Create(config_, checkpoint_, {.dtype = at::kBFloat16}));
    PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor hidden, model_->Embed(at::ones({1, 2}, at::kLong)));
    const at::Tensor row = checkpoint_.tensors["model.embed_tokens.weight"][1].to(at::kFloat);
    const at::Tensor expected = (row * (rounded ? 55.5 : std::sqrt(3072.0))).to(at::kBFloat16);
    EXPECT_TRUE(hidden[0][1].equal(expected)) << rounded;
  }
}

TEST_F(DecoderModelTest, WeightsThatAreStoredTransposedAreTurned) {
  config_.model_type = "gpt2";
  config_.norm = NormKind::kLayer;
  config_.attention.rotary = false;
  config_.position_offset = 0;
  config_.head_dim = 8;
  config_.num_key_value_heads = 4;
  Load();
  PTQ_ASSERT_OK_AND_ASSIGN(const auto block, model_->LoadBlock(1));
  const Linear& fused = block->linears().front();
  EXPECT_EQ(fused.module, "transformer.h.1.attn.c_attn");
  EXPECT_TRUE(fused.weight.equal(checkpoint_.tensors[fused.module + ".weight"].t()));
  EXPECT_EQ(fused.weight.size(0), 96);
  EXPECT_TRUE(fused.weight.is_contiguous());
}

TEST_F(DecoderModelTest, ATensorThatDoesNotFitTheConfigIsNamed) {
  Load();
  checkpoint_.tensors["model.layers.1.mlp.up_proj.weight"] = at::zeros({3, 4});
  EXPECT_THAT(model_->LoadBlock(1),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("model.layers.1.mlp.up_proj.weight: the shape is [3, 4], but "
                                 "config.json says [48, 32]")));
  checkpoint_.tensors.erase("model.norm.weight");
  EXPECT_THAT(model_->LoadHead(),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("model.norm.weight")));
}

TEST_F(DecoderModelTest, OnlyExistingBlocksLoad) {
  Load();
  EXPECT_EQ(model_->block_count(), 2);
  EXPECT_THAT(model_->LoadBlock(2),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("2 blocks")));
  EXPECT_THAT(model_->LoadBlock(-1),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("2 blocks")));
}

TEST_F(DecoderModelTest, UnknownFamiliesAreUnimplemented) {
  config_.model_type = "mamba";
  EXPECT_THAT(DecoderModel::Create(config_, checkpoint_, {}),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("mamba")));
}

TEST(ChooseComputeDtypeTest, NeverLosesPrecision) {
  EXPECT_EQ(ChooseComputeDtype(at::kCPU, at::kFloat), at::kFloat);
  EXPECT_EQ(ChooseComputeDtype(at::kCPU, at::kHalf), at::kFloat);
  for (const at::ScalarType stored : {at::kFloat, at::kHalf, at::kBFloat16}) {
    EXPECT_EQ(ChooseComputeDtype(at::kCUDA, stored), stored);
  }
}

}  // namespace
}  // namespace ptq
