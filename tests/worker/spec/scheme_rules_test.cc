// Rules: syntax, first match wins, and every refusal names the rule or the layers.
#include "worker/spec/scheme_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <re2/re2.h>

#include <ctime>
#include <string>
#include <vector>

#include "tests/testing/status_matchers.h"
#include "worker/spec/presets.h"

namespace ptq {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::IsOk;
using ::testing::Not;
using testing::StatusIs;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

// A Llama whose down projections have 96 input features, all others 64.
std::vector<TableTensor> Table(int64_t blocks = 2, bool tied = false) {
  ModelConfig config;
  config.tie_word_embeddings = tied;
  config.model_type = "llama";
  config.vocab_size = 32;
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.num_hidden_layers = blocks;
  config.num_attention_heads = config.num_key_value_heads = 4;
  config.head_dim = 16;
  return BuildTensorTable(config);
}

JobSpec SpecWith(const std::vector<std::string>& rules, int64_t group_size = 32) {
  JobSpec spec;
  spec.group_size = group_size;
  spec.rule = rules;
  return spec;
}

const EffectiveScheme& Layer(const std::vector<EffectiveScheme>& layers, const std::string& name) {
  for (const EffectiveScheme& layer : layers) {
    if (layer.module == name) return layer;
  }
  ADD_FAILURE() << "no layer " << name;
  return layers.front();
}

TEST(ParseSchemeRuleTest, ReadsSettingsAfterTheLastColon) {
  PTQ_ASSERT_OK_AND_ASSIGN(const SchemeRule rule,
                           ParseSchemeRule("(?:a|b)\\.c:bits=8,group_size=-1,symmetric=false"));
  EXPECT_EQ(rule.pattern, "(?:a|b)\\.c");
  EXPECT_FALSE(rule.skip);
  EXPECT_EQ(rule.bits, 8);
  EXPECT_EQ(rule.group_size, -1);
  EXPECT_EQ(rule.symmetric, false);
  PTQ_ASSERT_OK_AND_ASSIGN(const SchemeRule skip, ParseSchemeRule(".*:skip"));
  EXPECT_TRUE(skip.skip);
  EXPECT_FALSE(skip.bits.has_value());
}

TEST(ParseSchemeRuleTest, QuotesWhatItRefuses) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"lm_head", "expected PATTERN:skip"},
      {"", "expected PATTERN:skip"},
      {":skip", "the pattern before ':' is empty"},
      {"a:", "unknown setting \"\""},
      {"a:Skip", "unknown setting \"Skip\""},
      {"a:bits", "bits: \"\" is not in 2..8"},
      {"a:bits=1", "bits: \"1\" is not in 2..8"},
      {"a:bits=9", "bits: \"9\" is not in 2..8"},
      {"a:bits=4.0", "bits: \"4.0\" is not in 2..8"},
      {"a:bits=4,", "unknown setting \"\""},
      {"a:bits=4,bits=8", "bits is given twice"},
      {"a:bits=4,skip", "unknown setting \"skip\""},
      {"a:group_size=-2", "group_size: \"-2\""},
      {"a:group_size=99999999999999999999", "group_size: \"99999999999999999999\""},
      {"a:symmetric=1", "symmetric: \"1\" is neither true nor false"},
      {"a:scale=2", "unknown setting \"scale=2\""},
      {"(a:skip", "not valid RE2 syntax: missing )"},
      {"a**:skip", "not valid RE2 syntax: bad repetition operator"},
      {"[z-a]:skip", "not valid RE2 syntax: invalid character class range"},
      {"(a)\\1:skip", "not valid RE2 syntax: invalid escape sequence"},
      {"((a{100}){100}){100}:skip", "not valid RE2 syntax"},
      {std::string("\xff:skip"), "not valid RE2 syntax: invalid UTF-8"}};
  for (const auto& [text, why] : cases) {
    EXPECT_THAT(ParseSchemeRule(text),
                StatusIs(kInvalid, AllOf(HasSubstr("rule \""), HasSubstr(why))))
        << text;
  }
  EXPECT_THAT(ParseSchemeRule(std::string(5000, 'a') + ":skip"),
              StatusIs(kInvalid, HasSubstr("more than 4096 bytes")));
}

TEST(ResolveSchemesTest, WithoutRulesEveryLinearLayerGetsTheDefault) {
  JobSpec spec = SpecWith({});
  spec.bits = 3;
  spec.asymmetric = true;
  PTQ_ASSERT_OK_AND_ASSIGN(const auto layers, ResolveSchemes(spec, Table()));
  ASSERT_EQ(layers.size(), 14u);
  EXPECT_EQ(layers[0].module, "model.layers.0.self_attn.q_proj");
  EXPECT_EQ(layers[6].module, "model.layers.0.mlp.down_proj");
  EXPECT_EQ(layers[6].out_features, 64);
  EXPECT_EQ(layers[6].in_features, 96);
  EXPECT_EQ(layers[7].block, 1);
  for (const EffectiveScheme& layer : layers) EXPECT_EQ(layer.scheme, spec.DefaultScheme());
}

TEST(ResolveSchemesTest, TheFirstRuleThatMatchesWins) {
  PTQ_ASSERT_OK_AND_ASSIGN(
      const auto layers,
      ResolveSchemes(SpecWith({"model\\.layers\\.0\\.mlp\\.down_proj:skip",
                               ".*\\.down_proj:bits=8,group_size=-1", ".*mlp.*:symmetric=false",
                               "model.layers.1.*:bits=2"}),
                     Table()));
  EXPECT_FALSE(Layer(layers, "model.layers.0.mlp.down_proj").scheme.has_value());
  EXPECT_EQ(Layer(layers, "model.layers.1.mlp.down_proj").scheme,
            (QuantizationScheme{8, -1, true, ScaleRule::kFullRange}));
  EXPECT_EQ(Layer(layers, "model.layers.1.mlp.up_proj").scheme,
            (QuantizationScheme{4, 32, false, ScaleRule::kFullRange}));
  EXPECT_EQ(Layer(layers, "model.layers.1.self_attn.q_proj").scheme,
            (QuantizationScheme{2, 32, true, ScaleRule::kFullRange}));
  EXPECT_EQ(Layer(layers, "model.layers.0.self_attn.q_proj").scheme,
            (QuantizationScheme{4, 32, true, ScaleRule::kFullRange}));
}

TEST(ResolveSchemesTest, HeadAndEmbeddingAreQuantizedWhereARuleNamesThem) {
  PTQ_ASSERT_OK_AND_ASSIGN(
      const auto layers,
      ResolveSchemes(SpecWith({".*:bits=3", "lm_head:bits=8,group_size=-1", "lm_head:bits=2",
                               "model\\.(embed_tokens|layers.*):symmetric=false"}),
                     Table()));
  ASSERT_EQ(layers.size(), 16u);
  const EffectiveScheme& embedding = layers.front();
  EXPECT_EQ(embedding.module, "model.embed_tokens");
  EXPECT_EQ(embedding.place, ModulePlace::kEmbedding);
  EXPECT_EQ(embedding.block, kEmbeddingBlock);
  EXPECT_EQ(embedding.out_features, 32);
  EXPECT_EQ(embedding.in_features, 64);
  EXPECT_EQ(embedding.scheme, (QuantizationScheme{4, 32, false, ScaleRule::kFullRange}));
  const EffectiveScheme& head = layers.back();
  EXPECT_EQ(head.module, "lm_head");
  EXPECT_EQ(head.place, ModulePlace::kHead);
  EXPECT_EQ(head.block, 2);
  EXPECT_EQ(head.scheme, (QuantizationScheme{8, -1, true, ScaleRule::kFullRange}));
  EXPECT_EQ(layers[1].scheme, (QuantizationScheme{3, 32, true, ScaleRule::kFullRange}));
}

TEST(ResolveSchemesTest, PatternsForWhateverThereIsLeaveHeadAndEmbeddingAlone) {
  for (const char* pattern : {".*", "model\\..*", ".*_.*", "\\S+", "(model|lm).*|.*"}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto layers,
                             ResolveSchemes(SpecWith({std::string(pattern) + ":bits=8"}), Table()));
    EXPECT_EQ(layers.size(), 14u) << pattern;
  }
  PTQ_ASSERT_OK_AND_ASSIGN(
      const auto skipped,
      ResolveSchemes(SpecWith({"lm_head:skip", ".*(head|embed_tokens):bits=8"}), Table()));
  EXPECT_EQ(skipped.size(), 15u);
  EXPECT_EQ(skipped.front().module, "model.embed_tokens");
}

TEST(ResolveSchemesTest, PresetsLeaveHeadAndEmbeddingAlone) {
  for (const Preset& preset : Presets()) {
    JobSpec spec;
    ASSERT_THAT(UsePreset(preset.name, &spec), IsOk());
    if (spec.scheme != KQuant::kNone) {
      spec.format = {"gguf"};
    } else {
      spec.group_size = 32;
    }
    PTQ_ASSERT_OK_AND_ASSIGN(const auto layers, ResolveSchemes(spec, Table(8)));
    for (const EffectiveScheme& layer : layers) EXPECT_EQ(layer.place, ModulePlace::kBlock);
  }
}

TEST(ResolveSchemesTest, ATiedHeadIsTheEmbedding) {
  JobSpec spec = SpecWith({"lm_head:bits=8"});
  spec.format = {"gguf"};
  EXPECT_THAT(ResolveSchemes(spec, Table(2, /*tied=*/true)),
              StatusIs(kInvalid, AllOf(HasSubstr("rule \"lm_head:bits=8\""),
                                       HasSubstr("lm_head is the embedding in this model"),
                                       HasSubstr("gguf and dequantized"))));
  spec.rule = {"lm_head:skip"};
  EXPECT_THAT(ResolveSchemes(spec, Table(2, /*tied=*/true)), IsOk());
  spec.rule = {"model.embed_tokens:bits=8"};
  PTQ_ASSERT_OK_AND_ASSIGN(const auto layers, ResolveSchemes(spec, Table(2, /*tied=*/true)));
  EXPECT_EQ(layers.front().place, ModulePlace::kTiedEmbedding);
  for (const char* format : {"affine", "dequantized"}) {
    spec.format = {format};
    EXPECT_THAT(ResolveSchemes(spec, Table(2, /*tied=*/true)), IsOk()) << format;
  }
  for (const char* format : {"compressed-tensors", "gptq", "auto-round", "awq"}) {
    spec.rule = {"model.embed_tokens:bits=4"};
    spec.format = {format};
    EXPECT_THAT(ResolveSchemes(spec, Table(2, /*tied=*/true)),
                StatusIs(absl::StatusCode::kFailedPrecondition,
                         AllOf(HasSubstr("can't hold model.embed_tokens: it is the head too"),
                               HasSubstr("--rule 'model.embed_tokens:skip'"),
                               HasSubstr("affine, gguf or dequantized"))))
        << format;
  }
}

TEST(ResolveSchemesTest, FormatsWithoutAFormForHeadOrEmbeddingRefuse) {
  for (const char* format : {"affine", "gguf", "dequantized"}) {
    JobSpec spec = SpecWith({"model.embed_tokens:bits=8", "lm_head:bits=8"});
    spec.format = {format};
    EXPECT_THAT(ResolveSchemes(spec, Table()), IsOk()) << format;
  }
  for (const char* format : {"compressed-tensors", "gptq", "auto-round", "awq"}) {
    JobSpec spec = SpecWith({"model.embed_tokens:bits=4"});
    spec.format = {format};
    EXPECT_THAT(ResolveSchemes(spec, Table()),
                StatusIs(absl::StatusCode::kFailedPrecondition,
                         AllOf(HasSubstr(format), HasSubstr("no quantized embedding"))));
    spec.rule = {"lm_head:bits=4"};
    if (std::string(format) != "awq") {
      EXPECT_THAT(ResolveSchemes(spec, Table()), IsOk()) << format;
      continue;
    }
    EXPECT_THAT(ResolveSchemes(spec, Table()),
                StatusIs(absl::StatusCode::kFailedPrecondition,
                         AllOf(HasSubstr("no quantized head"), HasSubstr("lm_head:skip"))));
  }
}

TEST(ResolveSchemesTest, AVocabularyTakesNoSingleScale) {
  EXPECT_THAT(
      ResolveSchemes(SpecWith({"lm_head:group_size=0"}), Table()),
      StatusIs(kInvalid, AllOf(HasSubstr("the whole of lm_head"), HasSubstr("group_size="))));
}

TEST(ResolveSchemesTest, PatternsMatchInFull) {
  EXPECT_THAT(ResolveSchemes(SpecWith({"down_proj:skip"}), Table()),
              StatusIs(kInvalid, AllOf(HasSubstr("rule \"down_proj:skip\""),
                                       HasSubstr("matches no linear layer"),
                                       HasSubstr("model.layers.0.self_attn.q_proj"))));
  EXPECT_THAT(ResolveSchemes(SpecWith({"model.layers.0|.*:bits=8"}), Table()), IsOk());
}

TEST(ResolveSchemesTest, ARuleThatMatchesNothingIsNamed) {
  EXPECT_THAT(ResolveSchemes(SpecWith({".*:bits=8", "lm_hea:bits=8"}), Table()),
              StatusIs(kInvalid, HasSubstr("rule \"lm_hea:bits=8\"")));
  EXPECT_THAT(ResolveSchemes(SpecWith({"model.layers.2..*:skip"}), Table()),
              StatusIs(kInvalid, HasSubstr("rule \"model.layers.2..*:skip\"")));
  // A rule whose layers an earlier one took does match something.
  EXPECT_THAT(ResolveSchemes(SpecWith({".*:bits=8", ".*q_proj:bits=2"}), Table()), IsOk());
}

TEST(ResolveSchemesTest, SomethingMustBeLeftToQuantize) {
  EXPECT_THAT(ResolveSchemes(SpecWith({".*:skip"}), Table()),
              StatusIs(kInvalid, HasSubstr("nothing is left to quantize")));
}

TEST(ResolveSchemesTest, AGroupSizeThatDividesNothingComesWithTheRuleThatHelps) {
  const auto refused = ResolveSchemes(SpecWith({}, 64), Table());
  ASSERT_THAT(refused,
              StatusIs(kInvalid, AllOf(HasSubstr("group_size 64"), HasSubstr("in_features 96"),
                                       HasSubstr("model.layers.*.mlp.down_proj"),
                                       HasSubstr("but 32 does"), Not(HasSubstr("q_proj")))));
  // The rule is there to be copied.
  std::string rule;
  ASSERT_TRUE(
      RE2::PartialMatch(std::string(refused.status().message()), "--rule '([^']*)'", &rule));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto layers, ResolveSchemes(SpecWith({rule}, 64), Table()));
  EXPECT_FALSE(Layer(layers, "model.layers.0.mlp.down_proj").scheme.has_value());
  EXPECT_FALSE(Layer(layers, "model.layers.1.mlp.down_proj").scheme.has_value());
  EXPECT_TRUE(Layer(layers, "model.layers.1.mlp.up_proj").scheme.has_value());
}

TEST(ResolveSchemesTest, AGroupSizeOfSomeBlocksNamesThoseBlocks) {
  const std::string own = "model.layers.[02].*(down|up)_proj:group_size=40";
  const auto refused = ResolveSchemes(SpecWith({own}), Table(3));
  ASSERT_THAT(refused, StatusIs(kInvalid, AllOf(HasSubstr("model.layers.{0,2}.mlp.down_proj"),
                                                HasSubstr("model.layers.{0,2}.mlp.up_proj"))));
  std::string rule;
  ASSERT_TRUE(
      RE2::PartialMatch(std::string(refused.status().message()), "--rule '([^']*)'", &rule));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto layers, ResolveSchemes(SpecWith({rule, own}), Table(3)));
  EXPECT_FALSE(Layer(layers, "model.layers.2.mlp.down_proj").scheme.has_value());
  EXPECT_TRUE(Layer(layers, "model.layers.1.mlp.down_proj").scheme.has_value());
}

TEST(ResolveSchemesTest, ChannelAndTensorDivideEverything) {
  EXPECT_THAT(ResolveSchemes(SpecWith({}, -1), Table()), IsOk());
  EXPECT_THAT(ResolveSchemes(SpecWith({}, 0), Table()), IsOk());
}

// Processor seconds, which a busy machine does not change.
double SecondsToResolve(const JobSpec& spec, const std::vector<TableTensor>& table) {
  const std::clock_t begin = std::clock();
  EXPECT_THAT(ResolveSchemes(spec, table), IsOk());
  return static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
}

TEST(ResolveSchemesTest, CatastrophicPatternsAreHarmless) {
  EXPECT_LT(SecondsToResolve(SpecWith({"(.*)*(.*)*(.*)*(.*)*j:bits=8", "(a|a|aa|.)+:bits=2",
                                       "((((.+)+)+)+)+:symmetric=false"}),
                             Table(11'000)),
            1.0);
}

TEST(ResolveSchemesTest, ARuleForEveryLayerOfALargeModelTakesLessThanASecond) {
  const auto table = Table(80);
  std::vector<std::string> rules;
  for (const TableTensor& tensor : table) {
    if (tensor.role == TensorRole::kLinearWeight) rules.push_back(tensor.module + ":bits=8");
  }
  ASSERT_EQ(rules.size(), 560u);
  EXPECT_LT(SecondsToResolve(SpecWith(rules), table), 1.0);
}

JobSpec PresetSpec(const std::string& name, const std::vector<std::string>& rules = {}) {
  JobSpec spec = SpecWith(rules);
  EXPECT_THAT(UsePreset(name, &spec), IsOk());
  if (spec.scheme != KQuant::kNone) spec.format = {"gguf"};
  return spec;
}

// A Llama of 16 blocks whose layers all have 128 input features.
std::vector<TableTensor> WideTable() {
  ModelConfig config;
  config.model_type = "llama";
  config.vocab_size = 32;
  config.hidden_size = config.intermediate_size = 128;
  config.num_hidden_layers = 16;
  config.num_attention_heads = config.num_key_value_heads = 4;
  config.head_dim = 32;
  return BuildTensorTable(config);
}

TEST(PresetTest, OneOfASingleWidthGivesItToEveryLayer) {
  for (const Preset& preset : Presets()) {
    if (preset.wider_bits > 0 || preset.scheme.k_quant != KQuant::kNone) continue;
    PTQ_ASSERT_OK_AND_ASSIGN(const auto layers,
                             ResolveSchemes(PresetSpec(preset.name), WideTable()));
    for (const EffectiveScheme& layer : layers) EXPECT_EQ(layer.scheme, preset.scheme);
  }
}

TEST(PresetTest, AMixGivesMoreBitsWhereQ4KMDoes) {
  PTQ_ASSERT_OK_AND_ASSIGN(const auto layers, ResolveSchemes(PresetSpec("W4A16_M"), WideTable()));
  std::vector<int64_t> wider;
  for (const EffectiveScheme& layer : layers) {
    ASSERT_TRUE(layer.scheme.has_value());
    if (layer.scheme->bits == 4) continue;
    EXPECT_EQ(layer.scheme->bits, 8);
    EXPECT_EQ(layer.scheme->group_size, 128);
    EXPECT_THAT(layer.module, ::testing::EndsWith("mlp.down_proj"));
    wider.push_back(layer.block);
  }
  // llama.cpp's use_more_bits(i, 16): the first and the last two, and each third from the fifth.
  EXPECT_EQ(wider, (std::vector<int64_t>{0, 1, 4, 7, 10, 13, 14, 15}));
}

TEST(PresetTest, MixesKeepFusedSetsWhole) {
  for (const Preset& preset : Presets()) {
    const JobSpec spec = PresetSpec(preset.name);
    PTQ_ASSERT_OK_AND_ASSIGN(const auto layers, ResolveSchemes(spec, WideTable()));
    std::vector<std::string> warnings;
    EXPECT_THAT(CheckLoadersTake(spec, layers, &warnings), IsOk()) << preset.name;
  }
}

// A Llama of 16 blocks with 512 input features, of down_proj so many.
std::vector<TableTensor> TableOfSuperBlocks(int64_t intermediate_size = 768) {
  ModelConfig config;
  config.model_type = "llama";
  config.vocab_size = 32;
  config.hidden_size = 512;
  config.intermediate_size = intermediate_size;
  config.num_hidden_layers = 16;
  config.num_attention_heads = config.num_key_value_heads = 4;
  config.head_dim = 128;
  return BuildTensorTable(config);
}

// "Q4_K" or "5-bit", by the block, of the layers whose names end so.
std::string TypesOf(const std::vector<EffectiveScheme>& layers, const std::string& end) {
  std::string types;
  for (const EffectiveScheme& layer : layers) {
    if (!layer.module.ends_with(end)) continue;
    types += layer.scheme->k_quant == KQuant::kNone
                 ? std::to_string(layer.scheme->bits) + "-bit "
                 : KQuantName(layer.scheme->k_quant)[1] + std::string(" ");
  }
  return types;
}

TEST(KQuantMixTest, MixesOfLlamaCpp) {
  const auto types = [](const char* preset, const char* end) {
    const auto layers = ResolveSchemes(PresetSpec(preset), TableOfSuperBlocks());
    EXPECT_THAT(layers, IsOk());
    return TypesOf(*layers, end);
  };
  // llama_tensor_get_type_impl for 16 layers.
  EXPECT_EQ(types("Q4_K_M", "v_proj"), "6 6 4 4 6 4 4 6 4 4 6 4 4 6 6 6 ");
  EXPECT_EQ(types("Q4_K_M", "down_proj"), "6 6 4 4 6 4 4 6 4 4 6 4 4 6 6 6 ");
  EXPECT_EQ(types("Q4_K_M", "o_proj"), "4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 ");
  EXPECT_EQ(types("Q5_K_M", "v_proj"), "6 6 5 5 6 5 5 6 5 5 6 5 5 6 6 6 ");
  EXPECT_EQ(types("Q4_K_S", "v_proj"), "5 5 5 5 4 4 4 4 4 4 4 4 4 4 4 4 ");
  EXPECT_EQ(types("Q4_K_S", "down_proj"), "5 5 4 4 4 4 4 4 4 4 4 4 4 4 4 4 ");
  EXPECT_EQ(types("Q3_K_M", "v_proj"), "5 5 4 4 4 4 4 4 4 4 4 4 4 4 4 4 ");
  EXPECT_EQ(types("Q3_K_M", "down_proj"), "5 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 ");
  EXPECT_EQ(types("Q3_K_M", "o_proj"), "4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 ");
  EXPECT_EQ(types("Q3_K_M", "q_proj"), "3 3 3 3 3 3 3 3 3 3 3 3 3 3 3 3 ");
  EXPECT_EQ(types("Q2_K", "v_proj"), "4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 4 ");
  EXPECT_EQ(types("Q2_K", "down_proj"), "3 3 3 3 3 3 3 3 3 3 3 3 3 3 3 3 ");
  EXPECT_EQ(types("Q6_K", "down_proj"), "6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 6 ");
}

TEST(KQuantMixTest, LayersOfAllFamilies) {
  const auto name_of = [](const char* preset, const std::string& module) {
    TableTensor tensor;
    tensor.role = TensorRole::kLinearWeight;
    tensor.module = module;
    tensor.block = 0;
    tensor.shape = {512, 512};
    const auto layers = ResolveSchemes(PresetSpec(preset), {tensor});
    EXPECT_THAT(layers, IsOk());
    return std::string(KQuantName(layers->front().scheme->k_quant));
  };
  for (const char* fused : {"model.layers.0.self_attn.qkv_proj", "transformer.h.0.attn.c_attn",
                            "gpt_neox.layers.0.attention.query_key_value"}) {
    EXPECT_EQ(name_of("Q4_K_M", fused), "Q5_K") << fused;
  }
  for (const char* output :
       {"model.layers.0.mlp.down_proj", "transformer.h.0.mlp.c_proj",
        "gpt_neox.layers.0.mlp.dense_4h_to_h", "model.layers.0.mlp.experts.7.down_proj",
        "model.layers.0.block_sparse_moe.experts.1.w2"}) {
    EXPECT_EQ(name_of("Q4_K_M", output), "Q6_K") << output;
  }
  for (const char* output : {"model.layers.0.self_attn.o_proj", "transformer.h.0.attn.c_proj",
                             "gpt_neox.layers.0.attention.dense"}) {
    EXPECT_EQ(name_of("Q3_K_M", output), "Q4_K") << output;
  }
  EXPECT_EQ(name_of("Q3_K_M", "model.layers.0.mlp.experts.7.up_proj"), "Q3_K");
}

TEST(KQuantMixTest, FallsBackWhereSuperBlocksDoNotFit) {
  const auto types = [](const char* preset, int64_t columns) {
    const auto layers = ResolveSchemes(PresetSpec(preset), TableOfSuperBlocks(columns));
    EXPECT_THAT(layers, IsOk());
    return Layer(*layers, "model.layers.9.mlp.down_proj").scheme;
  };
  EXPECT_EQ(types("Q4_K_S", 800), (QuantizationScheme{.bits = 5, .group_size = 32}));
  EXPECT_EQ(types("Q5_K_M", 800),
            (QuantizationScheme{.bits = 5, .group_size = 32, .symmetric = false}));
  EXPECT_EQ(types("Q6_K", 800), (QuantizationScheme{.bits = 8, .group_size = 32}));
  EXPECT_EQ(types("Q2_K", 800), (QuantizationScheme{.bits = 4, .group_size = 32}));
  EXPECT_EQ(types("Q4_K_S", 760), std::nullopt);
}

TEST(KQuantSchemeTest, RulesAndRefusals) {
  JobSpec spec =
      SpecWith({".*v_proj:scheme=q6_k", ".*o_proj:bits=8,group_size=32", ".*k_proj:skip"});
  ASSERT_THAT(UseScheme("q3_K", &spec), IsOk());
  spec.format = {"gguf", "dequantized"};
  PTQ_ASSERT_OK_AND_ASSIGN(const auto layers, ResolveSchemes(spec, TableOfSuperBlocks()));
  const auto scheme = [&layers = layers](const std::string& name) {
    return Layer(layers, "model.layers.3." + name).scheme;
  };
  EXPECT_EQ(scheme("self_attn.q_proj"), KQuantScheme(KQuant::kQ3_K));
  EXPECT_EQ(scheme("self_attn.v_proj"), KQuantScheme(KQuant::kQ6_K));
  EXPECT_EQ(scheme("self_attn.o_proj"), (QuantizationScheme{.bits = 8, .group_size = 32}));
  EXPECT_EQ(scheme("self_attn.k_proj"), std::nullopt);
  std::vector<std::string> warnings;
  EXPECT_THAT(CheckLoadersTake(spec, layers, &warnings), IsOk());
  // By the layers' names, with a rule that helps.
  EXPECT_THAT(ResolveSchemes(spec, TableOfSuperBlocks(800)),
              StatusIs(kInvalid, AllOf(HasSubstr("Q3_K has super-blocks of 256 columns, which do "
                                                 "not divide in_features 800 of "
                                                 "model.layers.*.mlp.down_proj"),
                                       HasSubstr("mlp\\.down_proj:bits=5,group_size=32'"))));
  spec.format = {"compressed-tensors", "gguf"};
  EXPECT_THAT(ResolveSchemes(spec, TableOfSuperBlocks()),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("compressed-tensors can't hold model.layers.0.self_attn"),
                             HasSubstr("Q3_K"), HasSubstr("gguf or dequantized"))));
  // A K-quant by a rule alone.
  spec = SpecWith({".*mlp.*:scheme=Q4_K"});
  EXPECT_THAT(ResolveSchemes(spec, TableOfSuperBlocks()),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("affine can't hold model.layers.0.mlp.gate_proj")));
  EXPECT_THAT(ParseSchemeRule("a:scheme=Q7_K"),
              StatusIs(kInvalid, HasSubstr("\"Q7_K\" is none of Q2_K, Q3_K, Q4_K, Q5_K, Q6_K")));
  EXPECT_THAT(ParseSchemeRule("a:scheme=Q4_K,bits=4"),
              StatusIs(kInvalid, HasSubstr("scheme= sets bits")));
}

TEST(PresetTest, RulesGoBeforeThoseOfThePreset) {
  PTQ_ASSERT_OK_AND_ASSIGN(
      const auto layers,
      ResolveSchemes(PresetSpec("W4A16_M", {R"(.*\.0\.mlp\.down_proj:bits=6)"}), WideTable()));
  EXPECT_EQ(Layer(layers, "model.layers.0.mlp.down_proj").scheme->bits, 6);
  EXPECT_EQ(Layer(layers, "model.layers.1.mlp.down_proj").scheme->bits, 8);
}

TEST(PresetTest, AModelWithoutTheLayersOfAMixIsRefused) {
  std::vector<TableTensor> table = WideTable();
  std::erase_if(table, [](const TableTensor& tensor) {
    return tensor.module.find("down_proj") != std::string::npos;
  });
  EXPECT_THAT(ResolveSchemes(PresetSpec("W4A16_M"), table),
              StatusIs(kInvalid, HasSubstr("preset: W4A16_M has more bits for")));
  EXPECT_THAT(ResolveSchemes(PresetSpec("W4A16"), table), IsOk());
}

TEST(PresetTest, NamesAndDescriptionsAreOneLineEach) {
  for (const Preset& preset : Presets()) {
    EXPECT_THAT(FindPreset(preset.name), IsOk());
    const std::string description = preset.description;
    EXPECT_FALSE(description.empty());
    EXPECT_LT(description.size(), 110) << preset.name;
    EXPECT_THAT(description, Not(HasSubstr("\n")));
  }
}

TEST(LoadersTakeTest, ARuleThatSplitsAFusedSetIsRefused) {
  JobSpec spec = SpecWith({".*k_proj:bits=8"});
  PTQ_ASSERT_OK_AND_ASSIGN(const auto layers, ResolveSchemes(spec, Table()));
  std::vector<std::string> warnings;
  EXPECT_THAT(CheckLoadersTake(spec, layers, &warnings),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("rule: model.layers.0.self_attn.qkv_proj"),
                             HasSubstr("--allow-split-fused-sets"))));
  spec.allow_split_fused_sets = true;
  EXPECT_THAT(CheckLoadersTake(spec, layers, &warnings), IsOk());
  EXPECT_EQ(warnings.size(), 1);
}

}  // namespace
}  // namespace ptq
