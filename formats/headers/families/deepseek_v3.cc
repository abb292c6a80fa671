// DeepSeek V3 (arXiv 2412.19437): latent attention; experts by sigmoid scores that a learned bias
// corrects for the choice.
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/deepseek.h"
#include "formats/headers/families/experts.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {
namespace {

absl::Status ReadOptions(const Json& json, ModelConfig* config, std::vector<std::string>*) {
  PTQ_RETURN_IF_ERROR(ReadDeepseekSizes(json, /*dense_blocks=*/3, /*scaling=*/2.5, config));
  PTQ_ASSIGN_OR_RETURN(config->latent_attention.interleaved,
                       ReadFlag(json, "rope_interleave", true));
  config->experts.corrected = true;
  RouterConfig& router = config->experts.router;
  router.scores = RouterConfig::Scores::kSigmoid;
  router.scores_per_group = 2;
  router.epsilon = 1e-20;
  PTQ_ASSIGN_OR_RETURN(router.groups, ReadSize(json, "n_group", 8));
  PTQ_ASSIGN_OR_RETURN(router.groups_per_token, ReadSize(json, "topk_group", 4));
  PTQ_ASSIGN_OR_RETURN(router.normalize, ReadFlag(json, "norm_topk_prob", true));
  PTQ_RETURN_IF_ERROR(CheckRouter(router));
  PTQ_RETURN_IF_ERROR(RefuseOther(json, "topk_method", "noaux_tc"));
  return RefuseOther(json, "scoring_func", "sigmoid");
}

}  // namespace

Family DeepseekV3() {
  return {.model_type = "deepseek_v3",
          .architecture = "DeepseekV3ForCausalLM",
          .block_prefix = "model.layers.",
          .before_blocks = EmbeddingRows("model.embed_tokens"),
          .block = LlamaBlockRows(LatentAttentionRows(), DeepseekMlpRows()),
          .after_blocks = FinalRows("model.norm"),
          .ignored_suffixes = {".rotary_emb.inv_freq"},
          .keys = {.head_dim = nullptr,
                   .default_head_dim = 64,
                   .default_max_position_embeddings = 4096},
          .rope = {},
          .read_options = ReadOptions};
}

}  // namespace ptq::families
