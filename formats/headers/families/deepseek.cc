#include "formats/headers/families/deepseek.h"

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/experts.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {
namespace {

int64_t QueryRank(const ModelConfig& config) { return config.latent_attention.query_rank; }
int64_t KeyValueRank(const ModelConfig& config) { return config.latent_attention.key_value_rank; }
int64_t KeyValueDown(const ModelConfig& config) {
  return config.latent_attention.key_value_rank + config.latent_attention.rotary_head_dim;
}
int64_t LatentQueries(const ModelConfig& config) {
  return config.num_attention_heads * config.latent_attention.head_dim();
}
int64_t KeysAndValues(const ModelConfig& config) {
  const LatentAttentionConfig& latent = config.latent_attention;
  return config.num_attention_heads * (latent.plain_head_dim + latent.value_head_dim);
}
int64_t Values(const ModelConfig& config) {
  return config.num_attention_heads * config.latent_attention.value_head_dim;
}

bool HasRank(const ModelConfig& config, int64_t) { return config.latent_attention.query_rank > 0; }

constexpr Condition kIfRank = {HasRank, "q_lora_rank is a number"};
constexpr Condition kUnlessRank = {
    [](const ModelConfig& config, int64_t block) { return !HasRank(config, block); },
    "q_lora_rank is null"};
constexpr Condition kIfRankAndBias = {[](const ModelConfig& config, int64_t block) {
                                        return HasRank(config, block) && config.attention_bias;
                                      },
                                      "attention_bias is true"};
constexpr Condition kIfDenseBias = {[](const ModelConfig& config, int64_t block) {
                                      return config.mlp_bias && !config.IsRouted(block);
                                    },
                                    "mlp_bias is true"};
constexpr Condition kIfSharedBias = {[](const ModelConfig& config, int64_t block) {
                                       return config.mlp_bias && config.IsRouted(block);
                                     },
                                     "mlp_bias is true"};
constexpr Condition kIfCorrected = {[](const ModelConfig& config, int64_t block) {
                                      return config.IsRouted(block) && config.experts.corrected;
                                    },
                                    "the block has experts"};

}  // namespace

std::vector<Row> LatentAttentionRows() {
  using enum TensorPart;
  // What shares its input stands side by side: the projections from hidden states, then those from
  // latents.
  return Join({{{"self_attn.q_proj",
                 "weight",
                 TensorRole::kLinearWeight,
                 kQuery,
                 {LatentQueries, Hidden},
                 kUnlessRank},
                {"self_attn.q_a_proj",
                 "weight",
                 TensorRole::kLinearWeight,
                 kQueryDown,
                 {QueryRank, Hidden},
                 kIfRank},
                {"self_attn.q_a_proj",
                 "bias",
                 TensorRole::kLinearBias,
                 kQueryDown,
                 {QueryRank},
                 kIfRankAndBias}},
               LinearRows("self_attn.kv_a_proj_with_mqa", kKeyValueDown, KeyValueDown, Hidden,
                          kIfAttentionBias),
               {{"self_attn.q_a_layernorm",
                 "weight",
                 TensorRole::kNorm,
                 kQueryLatentNorm,
                 {QueryRank},
                 kIfRank},
                {"self_attn.q_b_proj",
                 "weight",
                 TensorRole::kLinearWeight,
                 kQuery,
                 {LatentQueries, QueryRank},
                 kIfRank},
                {"self_attn.kv_a_layernorm",
                 "weight",
                 TensorRole::kNorm,
                 kKeyValueLatentNorm,
                 {KeyValueRank},
                 kAlways}},
               LinearRows("self_attn.kv_b_proj", kKeyValue, KeysAndValues, KeyValueRank),
               LinearRows("self_attn.o_proj", kAttentionOutput, Hidden, Values, kIfAttentionBias)});
}

std::vector<Row> DeepseekMlpRows() {
  return Join({RouterRows("mlp.gate"),
               {{"mlp.gate",
                 "e_score_correction_bias",
                 TensorRole::kRouter,
                 TensorPart::kRouterCorrection,
                 {Experts},
                 kIfCorrected}},
               RoutedRows("mlp.experts.{i}.gate_proj", "mlp.experts.{i}.up_proj",
                          "mlp.experts.{i}.down_proj"),
               GatedRows("mlp.shared_experts", SharedExpertWidth, kIfRouted, kIfSharedBias),
               GatedRows("mlp", Intermediate, kIfDense, kIfDenseBias)});
}

absl::Status ReadDeepseekSizes(const Json& json, int64_t dense_blocks, double scaling,
                               ModelConfig* config) {
  if (config->num_key_value_heads != config->num_attention_heads) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "num_key_value_heads (%d) must be num_attention_heads (%d) in latent attention",
        config->num_key_value_heads, config->num_attention_heads));
  }
  PTQ_ASSIGN_OR_RETURN(config->attention_bias, ReadFlag(json, "attention_bias", false));
  LatentAttentionConfig& latent = config->latent_attention;
  // An explicit null means none.
  PTQ_ASSIGN_OR_RETURN(latent.query_rank,
                       ReadSize(json, "q_lora_rank", json.contains("q_lora_rank") ? 0 : 1536));
  PTQ_ASSIGN_OR_RETURN(latent.key_value_rank, ReadSize(json, "kv_lora_rank", 512));
  PTQ_ASSIGN_OR_RETURN(latent.plain_head_dim, ReadSize(json, "qk_nope_head_dim", 128));
  PTQ_ASSIGN_OR_RETURN(latent.rotary_head_dim, ReadSize(json, "qk_rope_head_dim", 64));
  PTQ_ASSIGN_OR_RETURN(latent.value_head_dim, ReadSize(json, "v_head_dim", 128));
  config->head_dim = latent.rotary_head_dim;  // what rotary embeddings see

  ExpertOptions& experts = config->experts;
  PTQ_ASSIGN_OR_RETURN(experts.intermediate_size, ReadSize(json, "moe_intermediate_size"));
  PTQ_ASSIGN_OR_RETURN(const int64_t shared, ReadSize(json, "n_shared_experts"));
  experts.shared_intermediate_size = shared * experts.intermediate_size;
  PTQ_ASSIGN_OR_RETURN(experts.router.experts, ReadSize(json, "n_routed_experts"));
  PTQ_ASSIGN_OR_RETURN(experts.router.experts_per_token, ReadSize(json, "num_experts_per_tok"));
  PTQ_ASSIGN_OR_RETURN(experts.router.scaling,
                       ReadPositiveNumber(json, "routed_scaling_factor", scaling));
  experts.router.float32_logits = true;
  if (const Json* value = FindKey(json, "first_k_dense_replace"); value != nullptr) {
    if (!value->is_number_unsigned()) {
      return WrongType("first_k_dense_replace", "an integer from 0 on");
    }
    dense_blocks = value->get<int64_t>();
  }
  for (int64_t block = 0; block < config->num_hidden_layers; ++block) {
    experts.routed.push_back(block >= dense_blocks);
  }
  return RefuseOther(json, "moe_layer_freq", 1);
}

}  // namespace ptq::families
