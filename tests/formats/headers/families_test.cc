// What families read from config.json, and which tensors they ask for. That the two describe the
// model is tests/interop/family_logits_test.py's to say.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "formats/headers/families/rows.h"
#include "formats/headers/family.h"
#include "formats/headers/tensor_table.h"
#include "tests/formats/headers/header_testing.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using testing::StatusIs;

// The sizes that no family has a default for, by the family's own keys.
Json SizesOf(const std::string& model_type) {
  const ConfigKeys& keys = FindFamily(model_type)->keys;
  return Json{{"model_type", model_type},  {"vocab_size", 32},
              {keys.hidden_size, 16},      {keys.intermediate_size, 24},
              {keys.num_hidden_layers, 2}, {keys.num_attention_heads, 4}};
}

absl::StatusOr<ModelConfig> Parse(const std::string& model_type,
                                  const Json& changes = Json::object(),
                                  std::vector<std::string>* warnings = nullptr) {
  Json json = SizesOf(model_type);
  // Their defaults don't divide four heads.
  static const std::set<std::string> kManyHeads = {"mistral",   "mixtral",     "qwen2",
                                                   "qwen2_moe", "qwen3",       "qwen3_moe",
                                                   "seed_oss",  "deepseek_v2", "deepseek_v3"};
  if (kManyHeads.contains(model_type)) {
    json["num_key_value_heads"] = 2;
  }
  if (model_type.starts_with("deepseek")) {
    json.update({{"num_key_value_heads", 4},
                 {"n_routed_experts", 4},
                 {"n_shared_experts", 1},
                 {"num_experts_per_tok", 2},
                 {"moe_intermediate_size", 8},
                 {"kv_lora_rank", 8},
                 {"q_lora_rank", 8},
                 {"n_group", 1},
                 {"topk_group", 1}});
  }
  json.update(changes);
  std::vector<std::string> ignored;
  return ParseModelConfig(DumpJson(json), warnings == nullptr ? &ignored : warnings);
}

ModelConfig Config(const std::string& model_type, const Json& changes = Json::object()) {
  const auto config = Parse(model_type, changes);
  EXPECT_THAT(config, testing::IsOk());
  return config.ok() ? *config : ModelConfig();
}

void ExpectRefused(const std::string& model_type, const Json& changes, const std::string& why,
                   absl::StatusCode code = absl::StatusCode::kUnimplemented) {
  EXPECT_THAT(Parse(model_type, changes), StatusIs(code, HasSubstr(why)));
}

std::map<std::string, TableTensor> TableOf(const ModelConfig& config) {
  std::map<std::string, TableTensor> table;
  for (const TableTensor& tensor : BuildTensorTable(config)) table[tensor.name] = tensor;
  return table;
}

TEST(FamiliesTest, EachHasOneNameAndAWholeTable) {
  std::set<std::string> types;
  for (const Family& family : Families()) {
    SCOPED_TRACE(family.model_type);
    EXPECT_TRUE(types.insert(family.model_type).second);
    const ModelConfig config = Config(family.model_type);
    EXPECT_EQ(config.architecture, family.architecture);
    std::set<std::string> names;
    std::map<TensorPart, int> parts;
    for (const TableTensor& tensor : BuildTensorTable(config)) {
      EXPECT_TRUE(names.insert(tensor.name).second) << tensor.name;
      for (const int64_t size : tensor.shape) EXPECT_GT(size, 0) << tensor.name;
      if (tensor.role != TensorRole::kLinearBias && tensor.role != TensorRole::kNormBias) {
        ++parts[tensor.part];
      }
    }
    EXPECT_EQ(parts[TensorPart::kTokenEmbedding], 1);
    EXPECT_EQ(parts[TensorPart::kFinalNorm], 1);
    EXPECT_EQ(parts[TensorPart::kHead], config.tie_word_embeddings ? 0 : 1);
    EXPECT_GE(parts[TensorPart::kDown], 2) << "more where there are experts";
    EXPECT_EQ(parts[TensorPart::kAttentionOutput], 2);
    EXPECT_EQ(parts[TensorPart::kQuery] + parts[TensorPart::kQueryKeyValue], 2);
  }
}

// From transformers 5's configuration classes.
TEST(FamiliesTest, AbsentKeysMeanWhatTheyMeanToTransformers) {
  const struct {
    const char* type;
    int64_t positions;
    double epsilon;
    bool tied;
    Activation activation;
  } kCases[] = {{"llama", 2048, 1e-6, false, Activation::kSilu},
                {"mistral", 131072, 1e-6, false, Activation::kSilu},
                {"qwen2", 32768, 1e-6, false, Activation::kSilu},
                {"qwen3", 32768, 1e-6, false, Activation::kSilu},
                {"gemma2", 8192, 1e-6, true, Activation::kGeluTanh},
                {"gemma3_text", 131072, 1e-6, true, Activation::kGeluTanh},
                {"phi3", 4096, 1e-5, false, Activation::kSilu},
                {"olmo2", 2048, 1e-5, false, Activation::kSilu},
                {"granite", 2048, 1e-6, false, Activation::kSilu},
                {"seed_oss", 524288, 1e-6, false, Activation::kSilu},
                {"starcoder2", 4096, 1e-5, true, Activation::kGeluTanh},
                {"gpt_neox", 2048, 1e-5, false, Activation::kGelu},
                {"mixtral", 131072, 1e-5, false, Activation::kSilu},
                {"qwen2_moe", 32768, 1e-6, false, Activation::kSilu},
                {"qwen3_moe", 32768, 1e-6, false, Activation::kSilu},
                {"deepseek_v2", 2048, 1e-6, false, Activation::kSilu},
                {"deepseek_v3", 4096, 1e-6, false, Activation::kSilu},
                {"opt", 2048, 1e-5, true, Activation::kRelu},
                {"gpt2", 1024, 1e-5, true, Activation::kGeluTanh}};
  EXPECT_EQ(std::size(kCases), Families().size());
  for (const auto& expected : kCases) {
    SCOPED_TRACE(expected.type);
    const ModelConfig config = Config(expected.type);
    EXPECT_EQ(config.max_position_embeddings, expected.positions);
    EXPECT_EQ(config.norm_eps, expected.epsilon);
    EXPECT_EQ(config.tie_word_embeddings, expected.tied);
    EXPECT_EQ(config.activation, expected.activation);
  }
  EXPECT_EQ(Config("qwen3").head_dim, 128);
  EXPECT_EQ(Config("seed_oss").head_dim, 128);
  EXPECT_TRUE(Config("seed_oss").attention_bias);
  EXPECT_EQ(Config("gemma2").head_dim, 256);
  EXPECT_EQ(Config("gemma2").num_key_value_heads, 4);
  EXPECT_EQ(Config("starcoder2").num_key_value_heads, 2);
  EXPECT_EQ(Config("starcoder2", {{"num_key_value_heads", nullptr}}).num_key_value_heads, 4);
  EXPECT_EQ(Config("mistral").attention.sliding_window, 4096);
  EXPECT_EQ(Config("mistral", {{"sliding_window", nullptr}}).WindowOf(0), 0);
  EXPECT_EQ(Config("gemma2").attention.soft_cap, 50);
  EXPECT_EQ(Config("gemma2").logits_soft_cap, 30);
  EXPECT_EQ(Config("gemma2").attention.scale, 1.0 / 16);
  EXPECT_EQ(Config("gemma3_text").logits_soft_cap, 0);
  EXPECT_EQ(Config("gemma3_text").rope.theta, 1e6);
  EXPECT_EQ(Config("gemma3_text").local_rope->theta, 1e4);
  EXPECT_EQ(Config("granite").attention.scale, 1);
  EXPECT_EQ(Config("gpt_neox").rope.partial_rotary_factor, 0.25);
  EXPECT_TRUE(Config("gpt_neox").parallel_residual);
  EXPECT_EQ(Config("gpt2", {{"n_inner", nullptr}}).intermediate_size, 64);
}

TEST(FamiliesTest, WindowsStandInTheBlocksThatHaveThem) {
  const Json windowed = {{"use_sliding_window", true}, {"sliding_window", 5}};
  Json qwen = windowed;
  qwen["max_window_layers"] = 1;
  const ModelConfig last = Config("qwen2", qwen);
  EXPECT_THAT(std::vector<int64_t>({last.WindowOf(0), last.WindowOf(1)}), ElementsAre(0, 5));
  EXPECT_EQ(Config("qwen2", windowed).WindowOf(1), 0) << "28 blocks have none";
  qwen["use_sliding_window"] = false;
  EXPECT_EQ(Config("qwen2", qwen).WindowOf(1), 0);
  const ModelConfig gemma = Config("gemma2", {{"sliding_window", 7}});
  EXPECT_THAT(std::vector<int64_t>({gemma.WindowOf(0), gemma.WindowOf(1)}), ElementsAre(7, 0));
  const ModelConfig listed =
      Config("gemma3_text", {{"layer_types", {"full_attention", "sliding_attention"}}});
  EXPECT_THAT(std::vector<int64_t>({listed.WindowOf(0), listed.WindowOf(1)}), ElementsAre(0, 4096));
  ExpectRefused("gemma2", {{"layer_types", {"full_attention"}}}, "layer_types must be an array",
                absl::StatusCode::kInvalidArgument);
  ExpectRefused("gemma2", {{"layer_types", {"full_attention", "chunked_attention"}}},
                "layer_types has \"chunked_attention\"");
}

TEST(FamiliesTest, Gemma3HasARopeForEachKindOfBlock) {
  const ModelConfig old =
      Config("gemma3_text", {{"rope_theta", 5e5},
                             {"rope_local_base_freq", 2e3},
                             {"rope_scaling", {{"rope_type", "linear"}, {"factor", 8}}}});
  EXPECT_EQ(old.rope.theta, 5e5);
  EXPECT_EQ(old.rope.type, RopeConfig::Type::kLinear);
  EXPECT_EQ(old.rope.factor, 8);
  EXPECT_EQ(old.local_rope->theta, 2e3);
  EXPECT_EQ(old.local_rope->type, RopeConfig::Type::kDefault);
  const Json both = {
      {"full_attention", {{"rope_type", "linear"}, {"factor", 4}, {"rope_theta", 3e5}}},
      {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 4e3}}}};
  const ModelConfig now = Config("gemma3_text", {{"rope_parameters", both}});
  EXPECT_EQ(now.rope.theta, 3e5);
  EXPECT_EQ(now.rope.factor, 4);
  EXPECT_EQ(now.local_rope->theta, 4e3);
  ExpectRefused("llama", {{"rope_parameters", both}},
                "full_attention: parameters by kind of layer");
}

TEST(FamiliesTest, PhisLongRopeHasItsOwnOriginalLength) {
  const Json scaling = {{"type", "su"}, {"short_factor", {1.0, 1.5}}, {"long_factor", {2.0, 4.0}}};
  const ModelConfig config =
      Config("phi3", {{"rope_scaling", scaling}, {"max_position_embeddings", 131072}});
  EXPECT_EQ(config.rope.type, RopeConfig::Type::kLongRope);
  EXPECT_EQ(config.rope.original_max_position_embeddings, 4096);
  EXPECT_EQ(config.rope.factor, 32);
  EXPECT_THAT(config.rope.long_factor, ElementsAre(2, 4));
  ExpectRefused("phi3", {{"rope_scaling", {{"type", "linear"}, {"factor", 2}}}},
                "supported: default, longrope");
}

TEST(FamiliesTest, WhatIsNotComputedIsRefusedByName) {
  ExpectRefused("opt", {{"do_layer_norm_before", false}}, "do_layer_norm_before false");
  ExpectRefused("opt", {{"_remove_final_layer_norm", true}}, "_remove_final_layer_norm true");
  ExpectRefused("opt", {{"layer_norm_elementwise_affine", false}}, "layer_norm_elementwise_affine");
  ExpectRefused("opt", {{"word_embed_proj_dim", 8}}, "word_embed_proj_dim 8");
  ExpectRefused("gpt2", {{"add_cross_attention", true}}, "add_cross_attention");
  ExpectRefused("seed_oss", {{"attention_out_bias", true}}, "attention_out_bias true");
  ExpectRefused("gemma3_text", {{"use_bidirectional_attention", true}},
                "use_bidirectional_attention");
  ExpectRefused("gpt2", {{"activation_function", "quick_gelu"}},
                "activation_function \"quick_gelu\" is not supported");
  ExpectRefused("qwen2", {{"partial_rotary_factor", 0.5}}, "partial_rotary_factor 0.5");
}

TEST(FamiliesTest, WrongValuesNameTheFamilysOwnKey) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  ExpectRefused("gpt2", {{"n_embd", nullptr}}, "n_embd is missing", kInvalid);
  ExpectRefused("gpt2", {{"n_head", 3}}, "n_head (3) does not divide n_embd (16)", kInvalid);
  ExpectRefused("opt", {{"ffn_dim", 0}}, "ffn_dim is 0", kInvalid);
  ExpectRefused("starcoder2", {{"norm_epsilon", -1}}, "norm_epsilon is -1", kInvalid);
  ExpectRefused("granite", {{"residual_multiplier", "1"}}, "residual_multiplier must be a number",
                kInvalid);
  ExpectRefused("gemma2", {{"final_logit_softcapping", 0}}, "final_logit_softcapping is 0",
                kInvalid);
  ExpectRefused("gpt_neox", {{"rotary_pct", 2}}, "partial_rotary_factor 2", kInvalid);
  ExpectRefused("qwen2", {{"max_window_layers", -1}}, "max_window_layers must be", kInvalid);
}

TEST(FamiliesTest, TransformersOddities) {
  std::vector<std::string> warnings;
  EXPECT_THAT(Parse("gemma3_text", {{"attn_logit_softcapping", 50.0}}, &warnings), testing::IsOk());
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("attn_logit_softcapping is ignored")));
  EXPECT_EQ(Config("gemma3_text", {{"attn_logit_softcapping", 50.0}}).attention.soft_cap, 0);
  warnings.clear();
  EXPECT_THAT(Parse("mistral", {{"layer_types", {"full_attention", "full_attention"}}}, &warnings),
              testing::IsOk());
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("layer_types is ignored")));
}

TEST(FamiliesTest, TablesNameTheTensorsOfEachFamily) {
  const auto neox = TableOf(Config("gpt_neox"));
  EXPECT_THAT(neox.at("gpt_neox.layers.1.attention.query_key_value.weight").shape,
              ElementsAre(48, 16));
  EXPECT_THAT(neox.at("gpt_neox.layers.1.input_layernorm.bias").shape, ElementsAre(16));
  EXPECT_EQ(neox.at("embed_out.weight").role, TensorRole::kHead);
  const auto opt = TableOf(Config("opt", {{"max_position_embeddings", 10}}));
  EXPECT_THAT(opt.at("model.decoder.embed_positions.weight").shape, ElementsAre(12, 16));
  EXPECT_EQ(opt.count("model.decoder.layers.0.fc2.bias"), 1u);
  EXPECT_EQ(
      TableOf(Config("opt", {{"enable_bias", false}})).count("model.decoder.layers.0.fc2.bias"),
      0u);
  const auto phi = TableOf(Config("phi3", {{"num_key_value_heads", 2}}));
  EXPECT_THAT(phi.at("model.layers.0.self_attn.qkv_proj.weight").shape, ElementsAre(32, 16));
  EXPECT_THAT(phi.at("model.layers.0.mlp.gate_up_proj.weight").shape, ElementsAre(48, 16));
  const auto olmo = TableOf(Config("olmo2", {{"num_key_value_heads", 2}}));
  EXPECT_THAT(olmo.at("model.layers.0.self_attn.k_norm.weight").shape, ElementsAre(8));
  EXPECT_EQ(olmo.count("model.layers.0.input_layernorm.weight"), 0u);
  const auto qwen = TableOf(Config("qwen3", {{"head_dim", 8}}));
  EXPECT_THAT(qwen.at("model.layers.0.self_attn.q_norm.weight").shape, ElementsAre(8));
  EXPECT_EQ(TableOf(Config("qwen2")).count("model.layers.0.self_attn.o_proj.bias"), 0u);
  EXPECT_EQ(TableOf(Config("qwen2")).count("model.layers.0.self_attn.q_proj.bias"), 1u);
}

TEST(FamiliesTest, Conv1dLiesTheOtherWayRound) {
  const auto table = TableOf(Config("gpt2"));
  const TableTensor& fused = table.at("transformer.h.0.attn.c_attn.weight");
  EXPECT_TRUE(fused.transposed);
  EXPECT_THAT(fused.shape, ElementsAre(48, 16));
  EXPECT_THAT(fused.stored_shape(), ElementsAre(16, 48));
  EXPECT_FALSE(table.at("transformer.wpe.weight").transposed);
}

TEST(FamiliesTest, LayersThatLoadersFuseShareASet) {
  const auto llama = TableOf(Config("llama", {{"attention_bias", true}}));
  for (const char* name : {"q_proj.weight", "k_proj.weight", "v_proj.weight", "q_proj.bias"}) {
    EXPECT_EQ(llama.at(std::string("model.layers.1.self_attn.") + name).fused_set,
              "model.layers.1.self_attn.qkv");
  }
  EXPECT_EQ(llama.at("model.layers.0.mlp.up_proj.weight").fused_set, "model.layers.0.mlp.gate_up");
  EXPECT_THAT(llama.at("model.layers.0.mlp.down_proj.weight").fused_set, IsEmpty());
  EXPECT_THAT(llama.at("model.layers.0.self_attn.o_proj.weight").fused_set, IsEmpty());
  const auto opt = TableOf(Config("opt"));
  EXPECT_EQ(opt.at("model.decoder.layers.0.self_attn.k_proj.weight").fused_set,
            "model.decoder.layers.0.self_attn.qkv");
  EXPECT_THAT(opt.at("model.decoder.layers.0.fc1.weight").fused_set, IsEmpty());
  for (const auto& [name, tensor] : TableOf(Config("phi3")))
    EXPECT_THAT(tensor.fused_set, IsEmpty());
}

}  // namespace
}  // namespace ptq
