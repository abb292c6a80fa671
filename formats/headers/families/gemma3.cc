// Gemma 3, the text model: as Gemma 2 without caps, with norms of queries and keys, and another
// rope base where there is a window.
#include "common/json.h"
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/gemma.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {
namespace {

// rope_parameters may hold both kinds of layers; rope_scaling is the full ones' alone.
absl::StatusOr<RopeConfig> ReadRopeOf(const Json& json, const char* kind, const RopeKeys& keys,
                                      const Json* scaling, const ModelConfig& config) {
  Json parameters = Json::object();
  if (const Json* all = FindKey(json, "rope_parameters"); all != nullptr) {
    if (!all->is_object()) return WrongType("rope_parameters", "an object");
    if (const Json* own = FindKey(*all, kind); own != nullptr) parameters = *own;
  }
  if (scaling != nullptr) {
    if (!scaling->is_object() || !parameters.is_object()) {
      return WrongType("rope_scaling", "an object");
    }
    parameters.update(*scaling);
  }
  return ReadRopeParameters(json, parameters, kind, keys, config);
}

absl::Status ReadOptions(const Json& json, ModelConfig* config,
                         std::vector<std::string>* warnings) {
  PTQ_RETURN_IF_ERROR(ReadGemmaOptions(json, /*default_logits_soft_cap=*/0, config));
  if (FindKey(json, "attn_logit_softcapping") != nullptr) {
    warnings->push_back(
        "config.json: attn_logit_softcapping is ignored, as transformers does for model_type "
        "gemma3_text");
  }
  PTQ_ASSIGN_OR_RETURN(const int64_t pattern, ReadSize(json, "sliding_window_pattern", 6));
  return ReadLayerTypes(
      json, config, [](int64_t block, int64_t every) { return (block + 1) % every != 0; }, pattern);
}

absl::Status ReadBothRopes(const Json& json, ModelConfig* config) {
  PTQ_ASSIGN_OR_RETURN(config->rope, ReadRopeOf(json, "full_attention", {.default_theta = 1e6},
                                                FindKey(json, "rope_scaling"), *config));
  PTQ_ASSIGN_OR_RETURN(
      config->local_rope,
      ReadRopeOf(json, "sliding_attention", {.theta = "rope_local_base_freq"}, nullptr, *config));
  return absl::OkStatus();
}

}  // namespace

Family Gemma3() {
  return {.model_type = "gemma3_text",
          .architecture = "Gemma3ForCausalLM",
          .block_prefix = "model.layers.",
          .before_blocks = EmbeddingRows("model.embed_tokens"),
          .block = GemmaBlockRows(
              Join({AttentionRows(kIfAttentionBias, kIfAttentionBias), HeadNormRows()})),
          .after_blocks = FinalRows("model.norm"),
          .ignored_suffixes = {".rotary_emb.inv_freq"},
          .keys = GemmaKeys(131072),
          .rope = {},
          .read_options = ReadOptions,
          .read_rope = ReadBothRopes};
}

}  // namespace ptq::families
