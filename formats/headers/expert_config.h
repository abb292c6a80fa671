// Options of config.json that only mixtures of experts and latent attention have.
#ifndef PTQ_FORMATS_HEADERS_EXPERT_CONFIG_H_
#define PTQ_FORMATS_HEADERS_EXPERT_CONFIG_H_

#include <cstdint>
#include <vector>

namespace ptq {

// How a router chooses a token's experts and what their outputs are multiplied by
// (models/expert_router.h).
struct RouterConfig {
  enum class Scores { kSoftmax, kSigmoid };
  Scores scores = Scores::kSoftmax;
  int64_t experts = 0;
  int64_t experts_per_token = 0;
  // Experts lie in groups of equal size; a token's come from its best groups alone. A group is
  // worth the sum of its best `scores_per_group` scores.
  int64_t groups = 1;
  int64_t groups_per_token = 1;
  int64_t scores_per_group = 1;
  bool normalize = false;            // a token's weights are divided by their sum + `epsilon`
  double epsilon = 0;                // of that division
  double scaling = 1;                // multiplies the weights, normalized or not
  bool float32_logits = false;       // the router's own product in float32, whatever the states are
  bool weights_like_hidden = false;  // weights are rounded to the states' dtype

  bool operator==(const RouterConfig&) const = default;
};

// Sizes of DeepSeek's latent attention (arXiv 2405.04434, section 2.1).
struct LatentAttentionConfig {
  int64_t query_rank = 0;         // q_lora_rank; 0: queries are projected directly
  int64_t key_value_rank = 0;     // kv_lora_rank; 0: the model has another kind of attention
  int64_t plain_head_dim = 0;     // qk_nope_head_dim: of queries and keys, not rotated
  int64_t rotary_head_dim = 0;    // qk_rope_head_dim: the rest of them, keys' shared by all heads
  int64_t value_head_dim = 0;     // v_head_dim
  bool interleaved = true;        // a rotated pair lies side by side, not half a head apart
  bool float32_rotation = false;  // cos, sin and the rotation in float32, whatever the states are

  int64_t head_dim() const { return plain_head_dim + rotary_head_dim; }
  bool operator==(const LatentAttentionConfig&) const = default;
};

// Of blocks with experts.
struct ExpertOptions {
  RouterConfig router;
  bool corrected = false;                // the router has e_score_correction_bias
  int64_t intermediate_size = 0;         // of a routed expert
  int64_t shared_intermediate_size = 0;  // of the one that all tokens share; 0: there is none
  std::vector<bool> routed;              // by block; empty: none has experts
};

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_EXPERT_CONFIG_H_
