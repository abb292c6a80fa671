// GPT-NeoX and Pythia: attention and MLP side by side, each head's query, key and value together,
// a rotary embedding of a part of each head.
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {
namespace {

absl::Status ReadOptions(const Json& json, ModelConfig* config, std::vector<std::string>*) {
  config->norm = NormKind::kLayer;
  config->attention.fused_by_head = true;
  PTQ_ASSIGN_OR_RETURN(config->attention_bias, ReadFlag(json, "attention_bias", true));
  config->mlp_bias = true;
  PTQ_ASSIGN_OR_RETURN(config->parallel_residual, ReadFlag(json, "use_parallel_residual", true));
  return absl::OkStatus();
}

}  // namespace

Family GptNeox() {
  using enum TensorPart;
  return {.model_type = "gpt_neox",
          .architecture = "GPTNeoXForCausalLM",
          .block_prefix = "gpt_neox.layers.",
          .before_blocks = EmbeddingRows("gpt_neox.embed_in"),
          .block = Join(
              {NormRows("input_layernorm", kAttentionInputNorm, Hidden, kAlways),
               NormRows("post_attention_layernorm", kMlpInputNorm, Hidden, kAlways),
               LinearRows("attention.query_key_value", kQueryKeyValue, QueriesKeysValues, Hidden,
                          kIfAttentionBias),
               LinearRows("attention.dense", kAttentionOutput, Hidden, Queries, kIfAttentionBias),
               LinearRows("mlp.dense_h_to_4h", kUp, Intermediate, Hidden, kAlways),
               LinearRows("mlp.dense_4h_to_h", kDown, Hidden, Intermediate, kAlways)}),
          .after_blocks = FinalRows("gpt_neox.final_layer_norm", kAlways, "embed_out"),
          .ignored_suffixes = {".attention.rotary_emb.inv_freq", ".attention.bias",
                               ".attention.masked_bias"},
          .keys = {.num_key_value_heads = nullptr,
                   .head_dim = nullptr,
                   .norm_eps = "layer_norm_eps",
                   .default_norm_eps = 1e-5,
                   .default_activation = "gelu"},
          .rope = {.theta = "rotary_emb_base",
                   .partial_rotary_factor = "rotary_pct",
                   .default_partial_rotary_factor = 0.25},
          .read_options = ReadOptions};
}

}  // namespace ptq::families
