// GPT-2: learned positions, LayerNorm, linear layers stored as [in, out] (transformers' Conv1D).
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {
namespace {

absl::Status ReadOptions(const Json& json, ModelConfig* config, std::vector<std::string>*) {
  PTQ_ASSIGN_OR_RETURN(const bool crossed, ReadFlag(json, "add_cross_attention", false));
  if (crossed) {
    return absl::UnimplementedError(
        "add_cross_attention is true, but only decoder-only models are supported");
  }
  config->norm = NormKind::kLayer;
  config->attention.rotary = false;
  config->position_offset = 0;
  config->attention_bias = true;
  config->mlp_bias = true;
  PTQ_ASSIGN_OR_RETURN(const bool scaled, ReadFlag(json, "scale_attn_weights", true));
  if (!scaled) config->attention.scale = 1;
  PTQ_ASSIGN_OR_RETURN(config->attention.scale_by_inverse_layer,
                       ReadFlag(json, "scale_attn_by_inverse_layer_idx", false));
  return absl::OkStatus();
}

std::vector<Row> Conv1dRows(const std::string& module, TensorPart part, Extent out, Extent in) {
  std::vector<Row> rows = LinearRows(module, part, out, in, kAlways);
  rows.front().transposed = true;
  return rows;
}

}  // namespace

Family Gpt2() {
  using enum TensorPart;
  return {
      .model_type = "gpt2",
      .architecture = "GPT2LMHeadModel",
      .block_prefix = "transformer.h.",
      .before_blocks = Join({EmbeddingRows("transformer.wte"), PositionRows("transformer.wpe")}),
      .block = Join({NormRows("ln_1", kAttentionInputNorm, Hidden, kAlways),
                     Conv1dRows("attn.c_attn", kQueryKeyValue, QueriesKeysValues, Hidden),
                     Conv1dRows("attn.c_proj", kAttentionOutput, Hidden, Queries),
                     NormRows("ln_2", kMlpInputNorm, Hidden, kAlways),
                     Conv1dRows("mlp.c_fc", kUp, Intermediate, Hidden),
                     Conv1dRows("mlp.c_proj", kDown, Hidden, Intermediate)}),
      .after_blocks = FinalRows("transformer.ln_f", kAlways),
      .ignored_suffixes = {".attn.bias", ".attn.masked_bias"},
      .keys = {.hidden_size = "n_embd",
               .intermediate_size = "n_inner",
               .num_hidden_layers = "n_layer",
               .num_attention_heads = "n_head",
               .num_key_value_heads = nullptr,
               .head_dim = nullptr,
               .max_position_embeddings = "n_positions",
               .norm_eps = "layer_norm_epsilon",
               .activation = "activation_function",
               .default_intermediate_factor = 4,
               .default_max_position_embeddings = 1024,
               .default_norm_eps = 1e-5,
               .default_activation = "gelu_new",
               .default_tie_word_embeddings = true},
      .rope = {},
      .read_options = ReadOptions};
}

}  // namespace ptq::families
