// Qwen 1.5 and 2 MoE: routed experts beside a shared one that has a gate of its own.
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/experts.h"
#include "formats/headers/families/qwen.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {
namespace {

int64_t One(const ModelConfig&) { return 1; }

absl::Status ReadOptions(const Json& json, ModelConfig* config, std::vector<std::string>*) {
  PTQ_ASSIGN_OR_RETURN(config->attention_bias, ReadFlag(json, "qkv_bias", true));
  PTQ_RETURN_IF_ERROR(
      ReadQwenExperts(json, {.experts = 60, .per_token = 4, .width = 1408}, config));
  PTQ_ASSIGN_OR_RETURN(config->experts.shared_intermediate_size,
                       ReadSize(json, "shared_expert_intermediate_size", 5632));
  // transformers writes a window of 0 where none is used.
  PTQ_ASSIGN_OR_RETURN(const bool used, ReadFlag(json, "use_sliding_window", false));
  if (!used) return absl::OkStatus();
  PTQ_ASSIGN_OR_RETURN(const int64_t window, ReadWindow(json, 4096));
  if (window == 0) return absl::OkStatus();
  config->attention.sliding_window = window;
  PTQ_ASSIGN_OR_RETURN(const int64_t blocks, ReadSize(json, "max_window_layers", 28));
  // The other way round than in the dense Qwen: every second one of the first blocks.
  return ReadLayerTypes(
      json, config,
      [](int64_t block, int64_t argument) { return block % 2 == 0 && block < argument; }, blocks);
}

}  // namespace

Family Qwen2Moe() {
  constexpr Condition kIfQkvBias = {kIfAttentionBias.holds, "qkv_bias is true"};
  return {.model_type = "qwen2_moe",
          .architecture = "Qwen2MoeForCausalLM",
          .block_prefix = "model.layers.",
          .before_blocks = EmbeddingRows("model.embed_tokens"),
          .block = LlamaBlockRows(
              AttentionRows(kIfQkvBias, kNever),
              Join({QwenExpertRows(),
                    GatedRows("mlp.shared_expert", SharedExpertWidth, kIfRouted, kNever),
                    {{"mlp.shared_expert_gate",
                      "weight",
                      TensorRole::kRouter,
                      TensorPart::kSharedExpertGate,
                      {One, Hidden},
                      kIfRouted}}})),
          .after_blocks = FinalRows("model.norm"),
          .ignored_suffixes = {".rotary_emb.inv_freq"},
          .keys = {.default_num_key_value_heads = 16, .default_max_position_embeddings = 32768},
          .rope = {},
          .read_options = ReadOptions};
}

}  // namespace ptq::families
