// The Llama table against transformers' names, and checkpoints that contradict their config.
#include "formats/headers/tensor_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "tests/formats/headers/header_testing.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using testing::FolderTest;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;
using testing::TensorSketch;
using testing::TinyModelConfig;

std::map<std::string, std::vector<int64_t>> Shapes(const std::vector<TableTensor>& table) {
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const TableTensor& tensor : table) shapes[tensor.name] = tensor.shape;
  return shapes;
}

TEST(TensorTableTest, ListsALlamaInTheModelsOrder) {
  const auto table = BuildTensorTable(TinyModelConfig({{"num_hidden_layers", 1}, {"head_dim", 8}}));
  std::vector<std::string> names;
  for (const TableTensor& tensor : table) names.push_back(tensor.name);
  EXPECT_THAT(
      names, ElementsAre(
                 "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight",
                 "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight",
                 "model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.o_proj.weight",
                 "model.layers.0.post_attention_layernorm.weight",
                 "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight",
                 "model.layers.0.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight"));
  const auto shapes = Shapes(table);
  EXPECT_THAT(shapes.at("model.embed_tokens.weight"), ElementsAre(32, 16));
  EXPECT_THAT(shapes.at("model.layers.0.self_attn.q_proj.weight"), ElementsAre(32, 16));
  EXPECT_THAT(shapes.at("model.layers.0.self_attn.k_proj.weight"), ElementsAre(16, 16));
  EXPECT_THAT(shapes.at("model.layers.0.self_attn.o_proj.weight"), ElementsAre(16, 32));
  EXPECT_THAT(shapes.at("model.layers.0.mlp.gate_proj.weight"), ElementsAre(24, 16));
  EXPECT_THAT(shapes.at("model.layers.0.mlp.down_proj.weight"), ElementsAre(16, 24));
  EXPECT_THAT(shapes.at("model.norm.weight"), ElementsAre(16));
  EXPECT_EQ(table[2].module, "model.layers.0.self_attn.q_proj");
  EXPECT_EQ(table[2].role, TensorRole::kLinearWeight);
  EXPECT_EQ(table[2].block, 0);
  EXPECT_EQ(table.front().role, TensorRole::kEmbedding);
  EXPECT_EQ(table.back().role, TensorRole::kHead);
  EXPECT_EQ(table.back().block, -1);
}

TEST(TensorTableTest, OptionsAddBiasesAndTakeTheHead) {
  const auto plain = Shapes(BuildTensorTable(TinyModelConfig()));
  const auto attention = Shapes(BuildTensorTable(TinyModelConfig({{"attention_bias", true}})));
  EXPECT_EQ(attention.size(), plain.size() + 2 * 4);
  EXPECT_THAT(attention.at("model.layers.1.self_attn.k_proj.bias"), ElementsAre(8));
  EXPECT_THAT(attention.at("model.layers.1.self_attn.o_proj.bias"), ElementsAre(16));
  const auto mlp = Shapes(BuildTensorTable(TinyModelConfig({{"mlp_bias", true}})));
  EXPECT_EQ(mlp.size(), plain.size() + 2 * 3);
  EXPECT_THAT(mlp.at("model.layers.0.mlp.up_proj.bias"), ElementsAre(24));
  EXPECT_THAT(mlp.at("model.layers.0.mlp.down_proj.bias"), ElementsAre(16));
  const auto tied = Shapes(BuildTensorTable(TinyModelConfig({{"tie_word_embeddings", true}})));
  EXPECT_EQ(tied.size(), plain.size() - 1);
  EXPECT_EQ(tied.count("lm_head.weight"), 0u);
}

TEST(TensorTableTest, ExpertsFollowEachOtherAndRoutersAreNoLayers) {
  const auto table = BuildBlockTable(TinyModelConfig({{"model_type", "mixtral"},
                                                      {"architectures", {"MixtralForCausalLM"}},
                                                      {"num_local_experts", 2}}),
                                     1);
  std::vector<std::string> linears;
  for (const TableTensor& tensor : table) {
    if (tensor.role == TensorRole::kLinearWeight && tensor.expert >= 0) {
      linears.push_back(tensor.module);
    }
    EXPECT_EQ(tensor.role == TensorRole::kRouter, absl::EndsWith(tensor.module, ".gate"));
  }
  const std::string moe = "model.layers.1.block_sparse_moe.experts.";
  EXPECT_THAT(linears, ElementsAre(moe + "0.w1", moe + "0.w3", moe + "0.w2", moe + "1.w1",
                                   moe + "1.w3", moe + "1.w2"));
  EXPECT_THAT(Shapes(table).at(moe + "1.w2.weight"), ElementsAre(16, 24));
  EXPECT_THAT(Shapes(table).at("model.layers.1.block_sparse_moe.gate.weight"), ElementsAre(2, 16));
}

TEST(TensorTableTest, SomeBlocksHaveExpertsAndOthersOneMlp) {
  const ModelConfig config = TinyModelConfig({{"model_type", "deepseek_v2"},
                                              {"architectures", {"DeepseekV2ForCausalLM"}},
                                              {"num_hidden_layers", 2},
                                              {"num_key_value_heads", nullptr},
                                              {"first_k_dense_replace", 1},
                                              {"n_routed_experts", 3},
                                              {"n_shared_experts", 2},
                                              {"num_experts_per_tok", 2},
                                              {"moe_intermediate_size", 5},
                                              {"q_lora_rank", nullptr},
                                              {"kv_lora_rank", 6},
                                              {"qk_nope_head_dim", 4},
                                              {"qk_rope_head_dim", 2},
                                              {"v_head_dim", 3}});
  const auto dense = Shapes(BuildBlockTable(config, 0));
  const auto routed = Shapes(BuildBlockTable(config, 1));
  EXPECT_THAT(dense.at("model.layers.0.mlp.up_proj.weight"), ElementsAre(24, 16));
  EXPECT_EQ(dense.count("model.layers.0.mlp.gate.weight"), 0);
  EXPECT_EQ(routed.count("model.layers.1.mlp.up_proj.weight"), 0);
  EXPECT_THAT(routed.at("model.layers.1.mlp.experts.2.up_proj.weight"), ElementsAre(5, 16));
  EXPECT_THAT(routed.at("model.layers.1.mlp.shared_experts.down_proj.weight"), ElementsAre(16, 10));
  const int64_t heads = config.num_attention_heads;
  EXPECT_THAT(dense.at("model.layers.0.self_attn.q_proj.weight"), ElementsAre(heads * 6, 16));
  EXPECT_THAT(dense.at("model.layers.0.self_attn.kv_a_proj_with_mqa.weight"), ElementsAre(8, 16));
  EXPECT_THAT(dense.at("model.layers.0.self_attn.kv_b_proj.weight"), ElementsAre(heads * 7, 6));
  EXPECT_THAT(dense.at("model.layers.0.self_attn.o_proj.weight"), ElementsAre(16, heads * 3));
}

TEST(TensorTableTest, KnowsItsFamilies) {
  EXPECT_TRUE(IsSupportedModelType("llama"));
  EXPECT_FALSE(IsSupportedModelType("mamba"));
  EXPECT_THAT(SupportedModelTypes(), Contains("llama"));
  EXPECT_EQ(ArchitectureOf("llama"), "LlamaForCausalLM");
  EXPECT_EQ(ArchitectureOf("mamba"), "");
}

class CheckAgainstTableTest : public FolderTest {
 protected:
  void SetUp() override {
    FolderTest::SetUp();
    tensors_ = testing::TensorsOf(config_);
  }
  absl::Status Check() {
    Write("model.safetensors", testing::SafetensorsFile(tensors_));
    auto index = CheckpointIndex::Open(folder_);
    EXPECT_THAT(index, IsOk());
    return CheckAgainstTable(*index, config_);
  }
  void ExpectRefused(const std::string& tensor, const std::string& why) {
    EXPECT_THAT(Check(), StatusIs(absl::StatusCode::kInvalidArgument,
                                  AllOf(HasSubstr(tensor), HasSubstr(why))));
  }
  TensorSketch& Tensor(const std::string& name) { return *testing::FindSketch(&tensors_, name); }

  ModelConfig config_ = TinyModelConfig();
  std::vector<TensorSketch> tensors_;
};

TEST_F(CheckAgainstTableTest, AcceptsWhatTheConfigDescribes) {
  EXPECT_THAT(Check(), IsOk());
  Tensor("model.norm.weight").dtype = DType::kF32;
  Tensor("lm_head.weight").dtype = DType::kF16;
  EXPECT_THAT(Check(), IsOk());
}

TEST_F(CheckAgainstTableTest, AcceptsWhatTransformersIgnores) {
  tensors_.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", DType::kF32, {2}});
  EXPECT_THAT(Check(), IsOk());
  config_.tie_word_embeddings = true;  // and lm_head.weight is still there
  EXPECT_THAT(Check(), IsOk());
}

TEST_F(CheckAgainstTableTest, NamesAMissingTensorAndTheKeyThatAsksForIt) {
  testing::EraseSketch(&tensors_, "model.layers.1.mlp.up_proj.weight");
  ExpectRefused("model.layers.1.mlp.up_proj.weight", "is missing");
}

TEST_F(CheckAgainstTableTest, NamesTheKeysOfOptions) {
  config_.attention_bias = true;
  ExpectRefused("model.layers.0.self_attn.q_proj.bias", "attention_bias is true");
  config_.attention_bias = false;
  config_.mlp_bias = true;
  ExpectRefused("model.layers.0.mlp.gate_proj.bias", "mlp_bias is true");
  config_.mlp_bias = false;
  testing::EraseSketch(&tensors_, "lm_head.weight");
  ExpectRefused("lm_head.weight", "tie_word_embeddings is false");
}

TEST_F(CheckAgainstTableTest, NamesAShapeThatDiffers) {
  Tensor("model.layers.0.mlp.down_proj.weight").shape = {24, 16};
  ExpectRefused("model.layers.0.mlp.down_proj.weight",
                "has shape [24, 16], but config.json asks for [16, 24]");
}

TEST_F(CheckAgainstTableTest, LayersMustBeThoseOfTheConfig) {
  config_.num_hidden_layers = 3;
  ExpectRefused("model.layers.2.input_layernorm.weight", "num_hidden_layers is 3");
  config_.num_hidden_layers = 1;
  ExpectRefused("model.layers.1.", "1 blocks");
}

TEST_F(CheckAgainstTableTest, RefusesExtraTensorsInBlocks) {
  tensors_.push_back({"model.layers.0.self_attn.q_proj.bias", DType::kBF16, {16}});
  ExpectRefused("model.layers.0.self_attn.q_proj.bias", "only if attention_bias is true");
}

TEST_F(CheckAgainstTableTest, RefusesOtherDtypes) {
  Tensor("model.norm.weight").dtype = DType::kF64;
  ExpectRefused("model.norm.weight", "dtype F64");
  Tensor("model.norm.weight").dtype = DType::kBF16;
  Tensor("model.layers.1.self_attn.v_proj.weight").dtype = DType::kF8E4M3;
  ExpectRefused("model.layers.1.self_attn.v_proj.weight", "already quantized");
}

TEST_F(CheckAgainstTableTest, RecognisesQuantizedCheckpointsByTheirTensors) {
  for (const char* name :
       {"model.layers.0.mlp.up_proj.qweight", "model.layers.0.mlp.up_proj._weight_qdata",
        "model.layers.0.mlp.up_proj.weight_packed", "model.layers.0.mlp.up_proj.weight_scale"}) {
    tensors_.push_back({name, DType::kI32, {2, 2}});
    ExpectRefused(name, "already quantized");
    tensors_.pop_back();
  }
}

TEST_F(CheckAgainstTableTest, UnknownTensorsOutsideOfBlocksAreListedNotRefused) {
  tensors_.push_back({"score.weight", DType::kBF16, {2, 16}});
  EXPECT_THAT(Check(), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(const auto index, CheckpointIndex::Open(folder_));
  std::vector<std::string> outside;
  EXPECT_THAT(CheckAgainstTable(index, config_, &outside), IsOk());
  EXPECT_THAT(outside, ElementsAre("score.weight"));
}

}  // namespace
}  // namespace ptq
