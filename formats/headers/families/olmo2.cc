// OLMo 2: norms behind attention and MLP, and over all queries and all keys.
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {
namespace {

absl::Status ReadOptions(const Json& json, ModelConfig* config, std::vector<std::string>*) {
  config->norm = NormKind::kRmsWide;
  PTQ_ASSIGN_OR_RETURN(config->attention_bias, ReadFlag(json, "attention_bias", false));
  return absl::OkStatus();
}

}  // namespace

Family Olmo2() {
  using enum TensorPart;
  return {.model_type = "olmo2",
          .architecture = "Olmo2ForCausalLM",
          .block_prefix = "model.layers.",
          .before_blocks = EmbeddingRows("model.embed_tokens"),
          .block = Join({AttentionRows(kIfAttentionBias, kIfAttentionBias),
                         NormRows("self_attn.q_norm", kQueryNorm, Queries),
                         NormRows("self_attn.k_norm", kKeyNorm, Keys),
                         NormRows("post_attention_layernorm", kAttentionOutputNorm, Hidden),
                         GatedMlpRows(),
                         NormRows("post_feedforward_layernorm", kMlpOutputNorm, Hidden)}),
          .after_blocks = FinalRows("model.norm"),
          .ignored_suffixes = {".rotary_emb.inv_freq"},
          .keys = {.default_norm_eps = 1e-5},
          .rope = {},
          .read_options = ReadOptions};
}

}  // namespace ptq::families
