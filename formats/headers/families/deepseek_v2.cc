// DeepSeek V2 (arXiv 2405.04434): latent attention; experts by softmax scores, as they are.
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/deepseek.h"
#include "formats/headers/families/experts.h"
#include "formats/headers/families/rows.h"
#include "formats/headers/quote.h"

namespace ptq::families {
namespace {

absl::Status ReadOptions(const Json& json, ModelConfig* config, std::vector<std::string>*) {
  PTQ_RETURN_IF_ERROR(ReadDeepseekSizes(json, /*dense_blocks=*/0, /*scaling=*/1, config));
  config->latent_attention.float32_rotation = true;
  PTQ_ASSIGN_OR_RETURN(config->mlp_bias, ReadFlag(json, "mlp_bias", false));
  RouterConfig& router = config->experts.router;
  PTQ_ASSIGN_OR_RETURN(const std::string method, ReadText(json, "topk_method", "greedy"));
  if (method == "group_limited_greedy") {
    PTQ_ASSIGN_OR_RETURN(router.groups, ReadSize(json, "n_group"));
    PTQ_ASSIGN_OR_RETURN(router.groups_per_token, ReadSize(json, "topk_group"));
  } else if (method != "greedy") {
    return absl::UnimplementedError(
        absl::StrFormat("topk_method %s is not supported (supported: greedy, group_limited_greedy)",
                        Quote(method)));
  }
  PTQ_RETURN_IF_ERROR(CheckRouter(router));
  // transformers looks at neither of them, DeepSeek's own code does.
  PTQ_RETURN_IF_ERROR(RefuseOther(json, "norm_topk_prob", false));
  return RefuseOther(json, "scoring_func", "softmax");
}

}  // namespace

Family DeepseekV2() {
  return {.model_type = "deepseek_v2",
          .architecture = "DeepseekV2ForCausalLM",
          .block_prefix = "model.layers.",
          .before_blocks = EmbeddingRows("model.embed_tokens"),
          .block = LlamaBlockRows(LatentAttentionRows(), DeepseekMlpRows()),
          .after_blocks = FinalRows("model.norm"),
          .ignored_suffixes = {".rotary_emb.inv_freq"},
          .keys = {.head_dim = nullptr, .default_head_dim = 64},
          .rope = {},
          .read_options = ReadOptions};
}

}  // namespace ptq::families
