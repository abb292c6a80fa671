// Granite 3: Llama with four multipliers.
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {
namespace {

absl::Status ReadOptions(const Json& json, ModelConfig* config, std::vector<std::string>*) {
  PTQ_ASSIGN_OR_RETURN(config->attention_bias, ReadFlag(json, "attention_bias", false));
  PTQ_ASSIGN_OR_RETURN(config->mlp_bias, ReadFlag(json, "mlp_bias", false));
  // 1 and not 1 / sqrt(head_dim) where the key is absent.
  PTQ_ASSIGN_OR_RETURN(config->attention.scale,
                       ReadPositiveNumber(json, "attention_multiplier", 1.0));
  PTQ_ASSIGN_OR_RETURN(config->embedding_multiplier,
                       ReadPositiveNumber(json, "embedding_multiplier", 1.0));
  PTQ_ASSIGN_OR_RETURN(config->residual_multiplier,
                       ReadPositiveNumber(json, "residual_multiplier", 1.0));
  PTQ_ASSIGN_OR_RETURN(config->logits_divisor, ReadPositiveNumber(json, "logits_scaling", 1.0));
  return absl::OkStatus();
}

}  // namespace

Family Granite() {
  return {.model_type = "granite",
          .architecture = "GraniteForCausalLM",
          .block_prefix = "model.layers.",
          .before_blocks = EmbeddingRows("model.embed_tokens"),
          .block = LlamaBlockRows(AttentionRows(kIfAttentionBias, kIfAttentionBias),
                                  GatedMlpRows(kIfMlpBias)),
          .after_blocks = FinalRows("model.norm"),
          .ignored_suffixes = {".rotary_emb.inv_freq"},
          .keys = {},
          .rope = {},
          .read_options = ReadOptions};
}

}  // namespace ptq::families
