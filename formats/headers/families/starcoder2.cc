// StarCoder 2: LayerNorm, an MLP without a gate, biases.
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {
namespace {

absl::Status ReadOptions(const Json& json, ModelConfig* config, std::vector<std::string>*) {
  config->norm = NormKind::kLayer;
  PTQ_ASSIGN_OR_RETURN(config->attention_bias, ReadFlag(json, "use_bias", true));
  config->mlp_bias = config->attention_bias;
  return ReadWindowOfAllBlocks(json, 0, config);
}

}  // namespace

Family Starcoder2() {
  using enum TensorPart;
  constexpr Condition kIfBias = {kIfAttentionBias.holds, "use_bias is true"};
  return {.model_type = "starcoder2",
          .architecture = "Starcoder2ForCausalLM",
          .block_prefix = "model.layers.",
          .before_blocks = EmbeddingRows("model.embed_tokens"),
          .block = Join({NormRows("input_layernorm", kAttentionInputNorm, Hidden, kAlways),
                         AttentionRows(kIfBias, kIfBias),
                         NormRows("post_attention_layernorm", kMlpInputNorm, Hidden, kAlways),
                         LinearRows("mlp.c_fc", kUp, Intermediate, Hidden, kIfBias),
                         LinearRows("mlp.c_proj", kDown, Hidden, Intermediate, kIfBias)}),
          .after_blocks = FinalRows("model.norm", kAlways),
          .ignored_suffixes = {".rotary_emb.inv_freq"},
          .keys = {.norm_eps = "norm_epsilon",
                   .default_num_key_value_heads = 2,
                   .default_max_position_embeddings = 4096,
                   .default_norm_eps = 1e-5,
                   .default_activation = "gelu_pytorch_tanh",
                   .default_tie_word_embeddings = true},
          .rope = {},
          .read_options = ReadOptions};
}

}  // namespace ptq::families
