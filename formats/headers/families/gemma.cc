#include "formats/headers/families/gemma.h"

#include <cmath>

#include "common/json.h"
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {

absl::StatusOr<double> ReadSoftCap(const Json& json, const char* key, double otherwise) {
  if (!json.contains(key)) return otherwise;
  if (FindKey(json, key) == nullptr) return 0;
  return ReadPositiveNumber(json, key);
}

ConfigKeys GemmaKeys(int64_t max_position_embeddings) {
  return {.activation = "hidden_activation",
          .default_num_key_value_heads = 4,
          .default_head_dim = 256,
          .default_max_position_embeddings = max_position_embeddings,
          .default_activation = "gelu_pytorch_tanh",
          .default_tie_word_embeddings = true};
}

std::vector<Row> GemmaBlockRows(const std::vector<Row>& attention) {
  using enum TensorPart;
  return Join({NormRows("input_layernorm", kAttentionInputNorm, Hidden), attention,
               NormRows("post_attention_layernorm", kAttentionOutputNorm, Hidden),
               NormRows("pre_feedforward_layernorm", kMlpInputNorm, Hidden), GatedMlpRows(),
               NormRows("post_feedforward_layernorm", kMlpOutputNorm, Hidden)});
}

absl::Status ReadGemmaOptions(const Json& json, double default_logits_soft_cap,
                              ModelConfig* config) {
  PTQ_ASSIGN_OR_RETURN(const bool both_ways, ReadFlag(json, "use_bidirectional_attention", false));
  if (both_ways) {
    return absl::UnimplementedError(
        "use_bidirectional_attention is true, but only causal models are supported");
  }
  config->norm = NormKind::kRmsPlusOne;
  PTQ_ASSIGN_OR_RETURN(config->attention_bias, ReadFlag(json, "attention_bias", false));
  AttentionOptions& attention = config->attention;
  PTQ_ASSIGN_OR_RETURN(const double scalar,
                       ReadPositiveNumber(json, "query_pre_attn_scalar", 256.0));
  attention.scale = 1 / std::sqrt(scalar);
  PTQ_ASSIGN_OR_RETURN(config->logits_soft_cap,
                       ReadSoftCap(json, "final_logit_softcapping", default_logits_soft_cap));
  PTQ_ASSIGN_OR_RETURN(attention.sliding_window, ReadWindow(json, 4096));
  config->embedding_multiplier = std::sqrt(static_cast<double>(config->hidden_size));
  config->round_embedding_multiplier = true;
  return absl::OkStatus();
}

}  // namespace ptq::families
