// What is refused before work starts, and what is only said.
#include "formats/headers/loader_rules/planned_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "formats/headers/loader_rules/fused_sets.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::IsOk;
using testing::StatusIs;

constexpr QuantizationScheme kW4{4, 128, true};
constexpr QuantizationScheme kW8{8, 128, true};

std::vector<PlannedLayer> Layers(const QuantizationScheme& scheme) {
  std::vector<PlannedLayer> layers;
  for (const char* name : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                           "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
    layers.push_back({std::string("model.layers.0.") + name, 256, 256, scheme});
  }
  return layers;
}

struct Outcome {
  absl::Status status;
  std::vector<std::string> warnings;
};

Outcome Check(const std::vector<PlannedLayer>& layers, const std::vector<std::string>& formats,
              bool allow = false) {
  Outcome outcome;
  outcome.status = CheckPlannedLayers(layers, formats, allow, &outcome.warnings);
  return outcome;
}

TEST(PlannedRulesTest, OneSchemePassesInEveryFormat) {
  for (const char* format :
       {"affine", "compressed-tensors", "gptq", "auto-round", "gguf", "dequantized"}) {
    const Outcome outcome = Check(Layers(kW4), {format});
    EXPECT_THAT(outcome.status, IsOk()) << format;
    EXPECT_THAT(outcome.warnings, IsEmpty()) << format;
  }
}

TEST(PlannedRulesTest, SplitFusedSetIsRefusedUnlessAsked) {
  std::vector<PlannedLayer> layers = Layers(kW4);
  layers[1].scheme = kW8;  // k_proj
  const Outcome refused = Check(layers, {"compressed-tensors"});
  EXPECT_THAT(refused.status,
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("rule: model.layers.0.self_attn.qkv_proj"),
                             HasSubstr("q_proj, k_proj and v_proj are loaded as one layer"),
                             HasSubstr("allow_split_fused_sets"))));
  const Outcome allowed = Check(layers, {"compressed-tensors"}, /*allow=*/true);
  EXPECT_THAT(allowed.status, IsOk());
  EXPECT_THAT(allowed.warnings, ElementsAre(HasSubstr("vLLM and SGLang will not load this model")));
}

TEST(PlannedRulesTest, PartlySkippedFusedSetIsRefused) {
  std::vector<PlannedLayer> layers = Layers(kW4);
  layers[5].scheme = std::nullopt;  // up_proj
  EXPECT_THAT(Check(layers, {"affine"}).status,
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("gate_up_proj")));
  layers[4].scheme = std::nullopt;  // gate_proj too
  EXPECT_THAT(Check(layers, {"affine"}).status, IsOk());
}

TEST(PlannedRulesTest, FormatsThatNothingFusesMaySplit) {
  std::vector<PlannedLayer> layers = Layers(kW4);
  layers[1].scheme = kW8;
  EXPECT_THAT(Check(layers, {"gguf", "dequantized"}).status, IsOk());
  EXPECT_THAT(Check(layers, {"gguf", "compressed-tensors"}).status,
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("qkv_proj")));
}

TEST(PlannedRulesTest, ExpertsOfABlockAreOneSet) {
  std::vector<PlannedLayer> layers;
  for (const char* name : {"0.w1", "0.w2", "0.w3", "1.w1", "1.w2", "1.w3"}) {
    layers.push_back(
        {std::string("model.layers.3.block_sparse_moe.experts.") + name, 256, 256, kW4});
  }
  EXPECT_THAT(Check(layers, {"gptq"}).status, IsOk());
  layers[4].scheme = kW8;
  EXPECT_THAT(Check(layers, {"gptq"}).status,
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("model.layers.3.block_sparse_moe.experts: the experts")));
}

TEST(PlannedRulesTest, WidthsThatSomeLoadersRefuseAreSaid) {
  const Outcome gptq = Check(Layers({3, 128, true}), {"gptq"});
  EXPECT_THAT(gptq.status, IsOk());
  EXPECT_THAT(gptq.warnings, ElementsAre(AllOf(HasSubstr("vllm will not load the format gptq"),
                                               HasSubstr("these have 3, symmetric"))));
  const Outcome packed = Check(Layers({3, 128, true}), {"compressed-tensors"});
  EXPECT_THAT(packed.status, IsOk());
  EXPECT_THAT(packed.warnings, Contains(HasSubstr("sglang will not load")));
}

TEST(PlannedRulesTest, WidthThatNoLoaderTakesIsRefused) {
  EXPECT_THAT(Check(Layers({5, 128, true}), {"gptq"}).status,
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("format: no loader takes these schemes as gptq")));
}

TEST(FusedSetsTest, Names) {
  EXPECT_EQ(FusedSetOf("model.layers.0.self_attn.k_proj")->module,
            "model.layers.0.self_attn.qkv_proj");
  EXPECT_EQ(FusedSetOf("model.layers.0.mlp.shared_expert.up_proj")->module,
            "model.layers.0.mlp.shared_expert.gate_up_proj");
  EXPECT_EQ(FusedSetOf("model.layers.0.self_attn.kv_a_proj_with_mqa")->module,
            "model.layers.0.self_attn.fused_qkv_a_proj");
  const auto experts = FusedSetOf("model.layers.0.mlp.experts.17.down_proj");
  ASSERT_TRUE(experts.has_value());
  EXPECT_EQ(experts->module, "model.layers.0.mlp.experts");
  EXPECT_FALSE(experts->joins_rows);
  for (const char* alone : {"model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj",
                            "model.layers.0.self_attn.qkv_proj", "lm_head"}) {
    EXPECT_FALSE(FusedSetOf(alone).has_value()) << alone;
  }
}

}  // namespace
}  // namespace ptq
