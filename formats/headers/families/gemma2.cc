// Gemma 2: four norms a block, capped logits, a scaled embedding, a window in every other block.
#include "common/status_macros.h"
#include "formats/headers/families/gemma.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {
namespace {

absl::Status ReadOptions(const Json& json, ModelConfig* config, std::vector<std::string>*) {
  PTQ_RETURN_IF_ERROR(ReadGemmaOptions(json, /*default_logits_soft_cap=*/30.0, config));
  PTQ_ASSIGN_OR_RETURN(config->attention.soft_cap,
                       ReadSoftCap(json, "attn_logit_softcapping", 50.0));
  return ReadLayerTypes(
      json, config, [](int64_t block, int64_t) { return block % 2 == 0; }, 0);
}

}  // namespace

Family Gemma2() {
  return {.model_type = "gemma2",
          .architecture = "Gemma2ForCausalLM",
          .block_prefix = "model.layers.",
          .before_blocks = EmbeddingRows("model.embed_tokens"),
          .block = GemmaBlockRows(AttentionRows(kIfAttentionBias, kIfAttentionBias)),
          .after_blocks = FinalRows("model.norm"),
          .ignored_suffixes = {".rotary_emb.inv_freq"},
          .keys = GemmaKeys(8192),
          .rope = {},
          .read_options = ReadOptions};
}

}  // namespace ptq::families
