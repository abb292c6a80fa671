// Llama 1, 2 and 3.
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {
namespace {

absl::Status ReadOptions(const Json& json, ModelConfig* config, std::vector<std::string>*) {
  PTQ_ASSIGN_OR_RETURN(config->attention_bias, ReadFlag(json, "attention_bias", false));
  PTQ_ASSIGN_OR_RETURN(config->mlp_bias, ReadFlag(json, "mlp_bias", false));
  return absl::OkStatus();
}

}  // namespace

Family Llama() {
  return {.model_type = "llama",
          .architecture = "LlamaForCausalLM",
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
