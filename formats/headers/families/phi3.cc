// Phi 3, 3.5 and 4: query, key and value in one layer, gate and up in one; longrope.
#include "formats/headers/families/rows.h"

namespace ptq::families {

Family Phi3() {
  using enum TensorPart;
  return {.model_type = "phi3",
          .architecture = "Phi3ForCausalLM",
          .block_prefix = "model.layers.",
          .before_blocks = EmbeddingRows("model.embed_tokens"),
          .block = LlamaBlockRows(
              Join({LinearRows("self_attn.qkv_proj", kQueryKeyValue, QueriesKeysValues, Hidden),
                    LinearRows("self_attn.o_proj", kAttentionOutput, Hidden, Queries)}),
              Join({LinearRows("mlp.gate_up_proj", kGateUp, TwoIntermediates, Hidden),
                    LinearRows("mlp.down_proj", kDown, Hidden, Intermediate)})),
          .after_blocks = FinalRows("model.norm"),
          .ignored_suffixes = {".rotary_emb.inv_freq"},
          .keys = {.default_max_position_embeddings = 4096, .default_norm_eps = 1e-5},
          .rope = {.partial_rotary_factor = "partial_rotary_factor",
                   .default_original_length = 4096,
                   .scalings = {RopeConfig::Type::kLongRope},
                   .names_of_longrope = {"su", "yarn"}},
          .read_options = [](const Json& json, ModelConfig* config, std::vector<std::string>*) {
            return ReadWindowOfAllBlocks(json, 0, config);
          }};
}

}  // namespace ptq::families
