// Seed-OSS: Llama with biases of query, key and value, and heads of 128 whatever the hidden size.
#include "absl/status/status.h"
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {
namespace {

absl::Status ReadOptions(const Json& json, ModelConfig* config, std::vector<std::string>*) {
  PTQ_ASSIGN_OR_RETURN(config->attention_bias, ReadFlag(json, "attention_bias", true));
  PTQ_ASSIGN_OR_RETURN(config->mlp_bias, ReadFlag(json, "mlp_bias", false));
  PTQ_ASSIGN_OR_RETURN(const bool output_bias, ReadFlag(json, "attention_out_bias", false));
  if (!output_bias) return absl::OkStatus();
  return absl::UnimplementedError(
      "attention_out_bias true is not supported for model_type seed_oss (supported: false)");
}

}  // namespace

Family SeedOss() {
  return {
      .model_type = "seed_oss",
      .architecture = "SeedOssForCausalLM",
      .block_prefix = "model.layers.",
      .before_blocks = EmbeddingRows("model.embed_tokens"),
      .block = LlamaBlockRows(AttentionRows(kIfAttentionBias, kNever), GatedMlpRows(kIfMlpBias)),
      .after_blocks = FinalRows("model.norm"),
      .ignored_suffixes = {},
      .keys = {.default_num_key_value_heads = 8,
               .default_head_dim = 128,
               .default_max_position_embeddings = 524288},
      .rope = {},
      .read_options = ReadOptions};
}

}  // namespace ptq::families
