// Mixtral: Mistral with routed experts in every block.
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/experts.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {
namespace {

absl::Status ReadOptions(const Json& json, ModelConfig* config, std::vector<std::string>*) {
  ExpertOptions& experts = config->experts;
  experts.intermediate_size = config->intermediate_size;
  experts.routed.assign(static_cast<size_t>(config->num_hidden_layers), true);
  RouterConfig& router = experts.router;
  PTQ_ASSIGN_OR_RETURN(router.experts, ReadSize(json, "num_local_experts", 8));
  PTQ_ASSIGN_OR_RETURN(router.experts_per_token, ReadSize(json, "num_experts_per_tok", 2));
  router.normalize = true;
  PTQ_RETURN_IF_ERROR(CheckRouter(router));
  return ReadWindowOfAllBlocks(json, 0, config);
}

}  // namespace

Family Mixtral() {
  return {.model_type = "mixtral",
          .architecture = "MixtralForCausalLM",
          .block_prefix = "model.layers.",
          .before_blocks = EmbeddingRows("model.embed_tokens"),
          .block = LlamaBlockRows(
              AttentionRows(kNever, kNever),
              Join({RouterRows("block_sparse_moe.gate"),
                    RoutedRows("block_sparse_moe.experts.{i}.w1", "block_sparse_moe.experts.{i}.w3",
                               "block_sparse_moe.experts.{i}.w2")})),
          .after_blocks = FinalRows("model.norm"),
          .ignored_suffixes = {".rotary_emb.inv_freq"},
          .keys = {.default_num_key_value_heads = 8,
                   .default_max_position_embeddings = 131072,
                   .default_norm_eps = 1e-5},
          .rope = {.default_theta = 1e6},
          .read_options = ReadOptions};
}

}  // namespace ptq::families
