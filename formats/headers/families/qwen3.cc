// Qwen 3 (dense): a norm for each head's query and key.
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/qwen.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {
namespace {

absl::Status ReadOptions(const Json& json, ModelConfig* config, std::vector<std::string>*) {
  PTQ_ASSIGN_OR_RETURN(config->attention_bias, ReadFlag(json, "attention_bias", false));
  return ReadQwenWindow(json, config);
}

}  // namespace

Family Qwen3() {
  return {.model_type = "qwen3",
          .architecture = "Qwen3ForCausalLM",
          .block_prefix = "model.layers.",
          .before_blocks = EmbeddingRows("model.embed_tokens"),
          .block = LlamaBlockRows(
              Join({AttentionRows(kIfAttentionBias, kIfAttentionBias), HeadNormRows()}),
              GatedMlpRows()),
          .after_blocks = FinalRows("model.norm"),
          .ignored_suffixes = {".rotary_emb.inv_freq"},
          .keys = {.default_num_key_value_heads = 32,
                   .default_head_dim = 128,
                   .default_max_position_embeddings = 32768},
          .rope = {},
          .read_options = ReadOptions};
}

}  // namespace ptq::families
