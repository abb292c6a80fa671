// Qwen 3 MoE: routed experts, and a norm for each head's query and key.
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/experts.h"
#include "formats/headers/families/qwen.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {
namespace {

absl::Status ReadOptions(const Json& json, ModelConfig* config, std::vector<std::string>*) {
  PTQ_ASSIGN_OR_RETURN(config->attention_bias, ReadFlag(json, "attention_bias", false));
  PTQ_RETURN_IF_ERROR(
      ReadQwenExperts(json, {.experts = 128, .per_token = 8, .width = 768}, config));
  PTQ_ASSIGN_OR_RETURN(const bool used, ReadFlag(json, "use_sliding_window", false));
  return used ? ReadWindowOfAllBlocks(json, 4096, config) : absl::OkStatus();
}

}  // namespace

Family Qwen3Moe() {
  return {.model_type = "qwen3_moe",
          .architecture = "Qwen3MoeForCausalLM",
          .block_prefix = "model.layers.",
          .before_blocks = EmbeddingRows("model.embed_tokens"),
          .block = LlamaBlockRows(
              Join({AttentionRows(kIfAttentionBias, kIfAttentionBias), HeadNormRows()}),
              QwenExpertRows()),
          .after_blocks = FinalRows("model.norm"),
          .ignored_suffixes = {".rotary_emb.inv_freq"},
          .keys = {.default_num_key_value_heads = 4, .default_max_position_embeddings = 32768},
          .rope = {},
          .read_options = ReadOptions};
}

}  // namespace ptq::families
