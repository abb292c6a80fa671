// Mistral: Llama with a sliding window in every block.
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {
namespace {

absl::Status ReadOptions(const Json& json, ModelConfig* config,
                         std::vector<std::string>* warnings) {
  if (FindKey(json, "layer_types") != nullptr) {
    warnings->push_back(
        "config.json: layer_types is ignored, as transformers does for model_type mistral");
  }
  return ReadWindowOfAllBlocks(json, 4096, config);
}

}  // namespace

Family Mistral() {
  return {.model_type = "mistral",
          .architecture = "MistralForCausalLM",
          .block_prefix = "model.layers.",
          .before_blocks = EmbeddingRows("model.embed_tokens"),
          .block = LlamaBlockRows(AttentionRows(kNever, kNever), GatedMlpRows()),
          .after_blocks = FinalRows("model.norm"),
          .ignored_suffixes = {".rotary_emb.inv_freq"},
          .keys = {.default_num_key_value_heads = 8, .default_max_position_embeddings = 131072},
          .rope = {},
          .read_options = ReadOptions};
}

}  // namespace ptq::families
