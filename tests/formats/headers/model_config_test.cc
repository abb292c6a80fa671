// config.json: both spellings of the rope keys, defaults, and everything that is refused.
#include "formats/headers/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/json.h"
#include "tests/formats/headers/header_testing.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::IsOk;
using ::testing::StartsWith;
using testing::StatusIs;
using testing::TinyConfig;
using testing::TinyModelConfig;

absl::StatusOr<ModelConfig> Parse(const Json& changes, std::vector<std::string>* warnings) {
  Json json = TinyConfig();
  json.update(changes);
  return ParseModelConfig(DumpJson(json), warnings);
}

void ExpectRefused(const Json& changes, const std::string& why,
                   absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
  std::vector<std::string> warnings;
  EXPECT_THAT(Parse(changes, &warnings),
              StatusIs(code, AllOf(StartsWith("config.json: "), HasSubstr(why))))
      << DumpJson(changes);
}

TEST(ModelConfigTest, DefaultsAreThoseOfLlamaConfig) {
  std::vector<std::string> warnings;
  PTQ_ASSERT_OK_AND_ASSIGN(
      const ModelConfig config,
      ParseModelConfig(R"({"model_type":"llama","vocab_size":10,"hidden_size":64,)"
                       R"("intermediate_size":96,"num_hidden_layers":3,"num_attention_heads":4,)"
                       R"("head_dim":null,"eos_token_id":null,"rope_scaling":null})",
                       &warnings));
  EXPECT_EQ(config.architecture, "LlamaForCausalLM");
  EXPECT_EQ(config.num_key_value_heads, 4);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.max_position_embeddings, 2048);
  EXPECT_EQ(config.norm_eps, 1e-6);
  EXPECT_FALSE(config.attention_bias);
  EXPECT_FALSE(config.mlp_bias);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_EQ(config.activation, Activation::kSilu);
  EXPECT_EQ(config.rope.type, RopeConfig::Type::kDefault);
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_FALSE(config.has_dtype);
  EXPECT_THAT(config.eos_token_ids, IsEmpty());
  EXPECT_THAT(warnings, IsEmpty());
}

TEST(ModelConfigTest, ReadsWhatIsGiven) {
  const ModelConfig config = TinyModelConfig({{"head_dim", 8},
                                              {"rms_norm_eps", 1e-5},
                                              {"attention_bias", true},
                                              {"mlp_bias", true},
                                              {"tie_word_embeddings", true},
                                              {"hidden_act", "swish"},
                                              {"eos_token_id", {3, 1}}});
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_EQ(config.num_key_value_heads, 2);
  EXPECT_EQ(config.norm_eps, 1e-5);
  EXPECT_TRUE(config.attention_bias);
  EXPECT_TRUE(config.mlp_bias);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.activation, Activation::kSilu);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(3, 1));
  EXPECT_TRUE(config.has_dtype);
  EXPECT_EQ(config.dtype, DType::kBF16);
}

TEST(ModelConfigTest, DtypeHasTwoKeysAndThreeValues) {
  EXPECT_EQ(TinyModelConfig({{"dtype", "float16"}}).dtype, DType::kF16);
  EXPECT_EQ(TinyModelConfig({{"dtype", nullptr}, {"torch_dtype", "float32"}}).dtype, DType::kF32);
  EXPECT_TRUE(TinyModelConfig({{"dtype", nullptr}, {"torch_dtype", "float32"}}).has_dtype);
  EXPECT_EQ(TinyModelConfig({{"dtype", "torch.bfloat16"}}).dtype, DType::kBF16);
  ExpectRefused({{"dtype", "int8"}}, "dtype is \"int8\"");
  ExpectRefused({{"dtype", 16}}, "dtype must be a string");
}

TEST(ModelConfigTest, RopeInTheSpellingOfTransformers4) {
  const RopeConfig rope = TinyModelConfig({{"rope_theta", 500000.0},
                                           {"rope_scaling",
                                            {{"rope_type", "llama3"},
                                             {"factor", 8},
                                             {"low_freq_factor", 1.0},
                                             {"high_freq_factor", 4.0},
                                             {"original_max_position_embeddings", 32}}}})
                              .rope;
  EXPECT_EQ(rope.type, RopeConfig::Type::kLlama3);
  EXPECT_EQ(rope.theta, 500000.0);
  EXPECT_EQ(rope.factor, 8.0);
  EXPECT_EQ(rope.low_freq_factor, 1.0);
  EXPECT_EQ(rope.high_freq_factor, 4.0);
  EXPECT_EQ(rope.original_max_position_embeddings, 32);
  const RopeConfig oldest =
      TinyModelConfig({{"rope_scaling", {{"type", "linear"}, {"factor", 2.5}}}}).rope;
  EXPECT_EQ(oldest.type, RopeConfig::Type::kLinear);
  EXPECT_EQ(oldest.factor, 2.5);
}

TEST(ModelConfigTest, RopeInTheSpellingOfTransformers5) {
  const RopeConfig rope =
      TinyModelConfig(
          {{"rope_parameters", {{"rope_type", "dynamic"}, {"rope_theta", 20000}, {"factor", 4}}}})
          .rope;
  EXPECT_EQ(rope.type, RopeConfig::Type::kDynamic);
  EXPECT_EQ(rope.theta, 20000.0);
  EXPECT_EQ(rope.factor, 4.0);
  // A theta beside the parameters fills in.
  EXPECT_EQ(TinyModelConfig({{"rope_theta", 7.0}, {"rope_parameters", {{"rope_type", "default"}}}})
                .rope.theta,
            7.0);
  // Where both are there, the older one wins unless it is empty.
  const Json both = {{"rope_scaling", {{"type", "linear"}, {"factor", 3}}},
                     {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 5}}}};
  EXPECT_EQ(TinyModelConfig(both).rope.type, RopeConfig::Type::kLinear);
  Json empty = both;
  empty["rope_scaling"] = Json::object();
  EXPECT_EQ(TinyModelConfig(empty).rope.theta, 5.0);
}

TEST(ModelConfigTest, YarnHasDefaultsAndOptions) {
  const RopeConfig defaults =
      TinyModelConfig({{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4}}}}).rope;
  EXPECT_EQ(defaults.type, RopeConfig::Type::kYarn);
  EXPECT_EQ(defaults.beta_fast, 32.0);
  EXPECT_EQ(defaults.beta_slow, 1.0);
  EXPECT_EQ(defaults.attention_factor, 0.0);
  EXPECT_TRUE(defaults.truncate);
  EXPECT_EQ(defaults.original_max_position_embeddings, 0);
  const RopeConfig given = TinyModelConfig({{"rope_scaling",
                                             {{"rope_type", "yarn"},
                                              {"factor", nullptr},
                                              {"original_max_position_embeddings", 16},
                                              {"attention_factor", 1.5},
                                              {"beta_fast", 16},
                                              {"beta_slow", 2},
                                              {"mscale", 0.7},
                                              {"mscale_all_dim", 0.8},
                                              {"truncate", false}}}})
                               .rope;
  EXPECT_EQ(given.factor, 4.0);  // 64 / 16
  EXPECT_EQ(given.attention_factor, 1.5);
  EXPECT_EQ(given.beta_fast, 16.0);
  EXPECT_EQ(given.beta_slow, 2.0);
  EXPECT_EQ(given.mscale, 0.7);
  EXPECT_EQ(given.mscale_all_dim, 0.8);
  EXPECT_FALSE(given.truncate);
  // A length beside the parameters has priority, as in transformers.
  EXPECT_EQ(
      TinyModelConfig(
          {{"original_max_position_embeddings", 8},
           {"rope_scaling",
            {{"rope_type", "yarn"}, {"factor", 4}, {"original_max_position_embeddings", 16}}}})
          .rope.original_max_position_embeddings,
      8);
}

TEST(ModelConfigTest, RefusesRopeParametersThatAreMissingOrWrong) {
  for (const char* type : {"linear", "dynamic", "llama3", "yarn"}) {
    SCOPED_TRACE(type);
    ExpectRefused({{"rope_scaling", {{"rope_type", type}}}}, "rope_scaling: factor is missing");
    ExpectRefused({{"rope_parameters", {{"rope_type", type}}}},
                  "rope_parameters: factor is missing");
    ExpectRefused({{"rope_scaling", {{"rope_type", type}, {"factor", 0}}}}, "factor is 0");
    ExpectRefused({{"rope_scaling", {{"rope_type", type}, {"factor", "8"}}}},
                  "factor must be a number");
  }
  ExpectRefused({{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8}}}},
                "low_freq_factor is missing");
  ExpectRefused(
      {{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8}, {"low_freq_factor", 1}}}},
      "high_freq_factor is missing");
  ExpectRefused(
      {{"rope_scaling",
        {{"rope_type", "llama3"}, {"factor", 8}, {"low_freq_factor", 4}, {"high_freq_factor", 4}}}},
      "high_freq_factor (4) must exceed low_freq_factor (4)");
  ExpectRefused({{"rope_scaling",
                  {{"rope_type", "yarn"}, {"factor", 2}, {"beta_fast", 1}, {"beta_slow", 2}}}},
                "beta_fast (1) must not be below beta_slow (2)");
  ExpectRefused(
      {{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 2}, {"attention_factor", -1}}}},
      "attention_factor is -1");
  ExpectRefused({{"rope_scaling", {{"rope_type", "longrope"}, {"short_factor", {1, 2}}}}},
                "long_factor is missing");
  ExpectRefused({{"rope_scaling", {{"rope_type", "longrope"}, {"short_factor", {1, 2, 3}}}}},
                "short_factor must be an array of 2 positive numbers");
  ExpectRefused({{"rope_scaling", {{"rope_type", "proportional"}}}},
                "rope_type \"proportional\" is not supported", absl::StatusCode::kUnimplemented);
  ExpectRefused({{"rope_scaling", "linear"}}, "rope_scaling must be an object");
  ExpectRefused({{"rope_theta", 0}}, "rope_theta is 0");
  ExpectRefused({{"rope_theta", 1}}, "rope_theta is 1");
  ExpectRefused({{"partial_rotary_factor", 0.5}}, "partial_rotary_factor 0.5 is not supported",
                absl::StatusCode::kUnimplemented);
  ExpectRefused({{"num_attention_heads", 8},
                 {"head_dim", 2},
                 {"rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2}}}},
                "head_dim above 2");
}

TEST(ModelConfigTest, RefusesSizesThatAreMissingOrAbsurd) {
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads"}) {
    SCOPED_TRACE(key);
    ExpectRefused({{key, nullptr}}, std::string(key) + " is missing");
    ExpectRefused({{key, 0}}, std::string(key) + " is 0, not in 1..2147483647");
    ExpectRefused({{key, -4}}, std::string(key) + " is -4");
    ExpectRefused({{key, int64_t{1} << 31}}, std::string(key) + " is 2147483648");
    ExpectRefused({{key, ~uint64_t{0}}}, std::string(key) + " is 18446744073709551615");
    ExpectRefused({{key, 16.0}}, std::string(key) + " must be an integer");
    ExpectRefused({{key, "16"}}, std::string(key) + " must be an integer");
  }
  ExpectRefused({{"num_hidden_layers", 2'000'000'000}}, "above the limit of 16384");
  ExpectRefused({{"hidden_size", 18}}, "num_attention_heads (4) does not divide hidden_size (18)");
  ExpectRefused({{"num_key_value_heads", 3}},
                "num_key_value_heads (3) does not divide num_attention_heads (4)");
  ExpectRefused({{"head_dim", 5}}, "head_dim is 5");
  ExpectRefused({{"rms_norm_eps", 0}}, "rms_norm_eps is 0");
  ExpectRefused({{"attention_bias", 1}}, "attention_bias must be true or false");
}

TEST(ModelConfigTest, RefusesOtherArchitectures) {
  ExpectRefused(
      {{"model_type", "mamba"}},
      "model_type \"mamba\" is not supported (supported: llama, mistral, qwen2, qwen3, "
      "gemma2, gemma3_text, phi3, olmo2, granite, seed_oss, starcoder2, gpt_neox, opt, gpt2, "
      "mixtral, qwen3_moe, qwen2_moe, deepseek_v2, deepseek_v3)",
      absl::StatusCode::kUnimplemented);
  ExpectRefused({{"model_type", nullptr}}, "model_type is missing");
  ExpectRefused({{"architectures", {"LlamaForSequenceClassification"}}},
                "architecture \"LlamaForSequenceClassification\" is not supported",
                absl::StatusCode::kUnimplemented);
  ExpectRefused({{"architectures", "LlamaForCausalLM"}}, "architectures must be an array");
  ExpectRefused({{"hidden_act", "xielu"}}, "hidden_act \"xielu\" is not supported",
                absl::StatusCode::kUnimplemented);
}

TEST(ModelConfigTest, RemoteCodeIsNeverExecuted) {
  const Json auto_map = {{"AutoModelForCausalLM", "modeling_evil.Evil"}};
  ExpectRefused({{"model_type", "evil"}, {"auto_map", auto_map}}, "never executed",
                absl::StatusCode::kUnimplemented);
  ExpectRefused({{"model_type", nullptr}, {"auto_map", auto_map}}, "never executed",
                absl::StatusCode::kUnimplemented);
  ExpectRefused({{"architectures", {"EvilForCausalLM"}}, {"auto_map", auto_map}}, "never executed",
                absl::StatusCode::kUnimplemented);
  std::vector<std::string> warnings;
  EXPECT_THAT(Parse({{"auto_map", auto_map}}, &warnings), IsOk());
  EXPECT_THAT(warnings, ElementsAre(AllOf(HasSubstr("auto_map"), HasSubstr("never executed"))));
}

TEST(ModelConfigTest, RefusesWhatIsAlreadyQuantized) {
  ExpectRefused({{"quantization_config", {{"quant_method", "gptq"}, {"bits", 4}}}},
                "quantization_config \"gptq\" says that the checkpoint is already quantized");
  ExpectRefused({{"quantization_config", Json::object()}}, "already quantized");
  ExpectRefused({{"compression_config", Json::object()}}, "already quantized");
  EXPECT_EQ(TinyModelConfig({{"quantization_config", nullptr}}).vocab_size, 32);
}

TEST(ModelConfigTest, EndOfTextOutsideTheVocabularyIsIgnoredWithAWarning) {
  std::vector<std::string> warnings;
  PTQ_ASSERT_OK_AND_ASSIGN(const ModelConfig config,
                           Parse({{"eos_token_id", {32, 31, -1}}}, &warnings));
  EXPECT_THAT(config.eos_token_ids, ElementsAre(31));
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("eos_token_id 32"), HasSubstr("eos_token_id -1")));
  ExpectRefused({{"eos_token_id", "</s>"}}, "eos_token_id must be an integer");
}

TEST(ModelConfigTest, RefusesWhatIsNotAJsonObject) {
  std::vector<std::string> warnings;
  for (const char* text : {"", "[]", "{,}", R"({"model_type":"llama","model_type":"x"})"}) {
    EXPECT_THAT(ParseModelConfig(text, &warnings),
                StatusIs(absl::StatusCode::kInvalidArgument, StartsWith("config.json: ")))
        << text;
  }
}

}  // namespace
}  // namespace ptq
