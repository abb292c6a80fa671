// Qwen 2 and 2.5: biases of query, key and value; a sliding window in the last blocks, if at all.
#include "formats/headers/families/qwen.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {

Family Qwen2() {
  return {.model_type = "qwen2",
          .architecture = "Qwen2ForCausalLM",
          .block_prefix = "model.layers.",
          .before_blocks = EmbeddingRows("model.embed_tokens"),
          .block = LlamaBlockRows(AttentionRows(kAlways, kNever), GatedMlpRows()),
          .after_blocks = FinalRows("model.norm"),
          .ignored_suffixes = {".rotary_emb.inv_freq"},
          .keys = {.default_num_key_value_heads = 32, .default_max_position_embeddings = 32768},
          .rope = {},
          .read_options = [](const Json& json, ModelConfig* config, std::vector<std::string>*) {
            return ReadQwenWindow(json, config);
          }};
}

}  // namespace ptq::families
