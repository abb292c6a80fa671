// OPT: learned positions, LayerNorm, biases.
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {
namespace {

absl::Status ReadOptions(const Json& json, ModelConfig* config, std::vector<std::string>*) {
  constexpr struct {
    const char* key;
    bool supported;
  } kFixed[] = {{"do_layer_norm_before", true},
                {"_remove_final_layer_norm", false},
                {"layer_norm_elementwise_affine", true}};
  for (const auto& option : kFixed) {
    PTQ_ASSIGN_OR_RETURN(const bool value, ReadFlag(json, option.key, option.supported));
    if (value != option.supported) {
      return absl::UnimplementedError(
          absl::StrFormat("%s %s is not supported for model_type opt (supported: %s)", option.key,
                          value ? "true" : "false", option.supported ? "true" : "false"));
    }
  }
  PTQ_ASSIGN_OR_RETURN(const int64_t width,
                       ReadSize(json, "word_embed_proj_dim", config->hidden_size));
  if (width != config->hidden_size) {
    return absl::UnimplementedError(absl::StrFormat(
        "word_embed_proj_dim %d is not supported for model_type opt (supported: hidden_size, %d)",
        width, config->hidden_size));
  }
  config->norm = NormKind::kLayer;
  config->attention.rotary = false;
  config->position_offset = 2;
  PTQ_ASSIGN_OR_RETURN(config->attention_bias, ReadFlag(json, "enable_bias", true));
  config->mlp_bias = config->attention_bias;
  return absl::OkStatus();
}

}  // namespace

Family Opt() {
  using enum TensorPart;
  constexpr Condition kIfBias = {kIfAttentionBias.holds, "enable_bias is true"};
  return {
      .model_type = "opt",
      .architecture = "OPTForCausalLM",
      .block_prefix = "model.decoder.layers.",
      .before_blocks = Join({EmbeddingRows("model.decoder.embed_tokens"),
                             PositionRows("model.decoder.embed_positions")}),
      .block = Join({NormRows("self_attn_layer_norm", kAttentionInputNorm, Hidden, kAlways),
                     LinearRows("self_attn.q_proj", kQuery, Queries, Hidden, kIfBias),
                     LinearRows("self_attn.k_proj", kKey, Keys, Hidden, kIfBias),
                     LinearRows("self_attn.v_proj", kValue, Keys, Hidden, kIfBias),
                     LinearRows("self_attn.out_proj", kAttentionOutput, Hidden, Queries, kIfBias),
                     NormRows("final_layer_norm", kMlpInputNorm, Hidden, kAlways),
                     LinearRows("fc1", kUp, Intermediate, Hidden, kIfBias),
                     LinearRows("fc2", kDown, Hidden, Intermediate, kIfBias)}),
      .after_blocks = FinalRows("model.decoder.final_layer_norm", kAlways),
      .ignored_suffixes = {},
      .keys = {.intermediate_size = "ffn_dim",
               .num_key_value_heads = nullptr,
               .head_dim = nullptr,
               .norm_eps = nullptr,
               .activation = "activation_function",
               .default_norm_eps = 1e-5,
               .default_activation = "relu",
               .default_tie_word_embeddings = true},
      .rope = {},
      .read_options = ReadOptions};
}

}  // namespace ptq::families
