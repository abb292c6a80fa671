// DeepSeek's multi-head latent attention (arXiv 2405.04434, section 2.1): keys and values come from
// one narrow latent a token, and only a part of each head is rotated.
#ifndef PTQ_MODELS_LATENT_ATTENTION_H_
#define PTQ_MODELS_LATENT_ATTENTION_H_

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "formats/headers/expert_config.h"
#include "formats/headers/model_config.h"
#include "models/attention.h"
#include "models/block_weights.h"
#include "models/decoder_block.h"
#include "models/linear.h"

namespace ptq {

// What the scores are multiplied by: 1 / sqrt(head_dim), and under yarn with mscale_all_dim the
// square of its magnitude.
double LatentAttentionScale(const LatentAttentionConfig& config, const RopeConfig& rope);

struct LatentAttention {
  LatentAttentionConfig config;
  int64_t heads = 0;
  double scale = 0;
  // Indices into DecoderBlock::linears(). Queries are query(x), or query(norm(query_down(x))) where
  // they have a rank.
  size_t query_down = 0;      // q_a_proj [query_rank, D]
  size_t query = 0;           // q_proj or q_b_proj [heads · head_dim, D or query_rank]
  size_t key_value_down = 0;  // kv_a_proj_with_mqa [key_value_rank + rotary_head_dim, D]
  size_t key_value = 0;   // kv_b_proj [heads · (plain_head_dim + value_head_dim), key_value_rank]
  size_t output = 0;      // o_proj [D, heads · value_head_dim]
  at::Tensor query_norm;  // [query_rank], or undefined
  at::Tensor key_value_norm;  // [key_value_rank]
};

// input [B, T, D] -> [B, T, D], causal. `rotary` has cos and sin [T, rotary_head_dim]; their dtype
// is the one that heads are rotated in. Differentiable. Throws c10::Error.
at::Tensor ApplyLatentAttention(const LatentAttention& attention, const at::Tensor& input,
                                const RotaryTable& rotary, const LinearFunction& apply);

// The same by the options of `config` and the block's tensors. kInvalidArgument for a missing one.
absl::StatusOr<std::unique_ptr<Attention>> MakeLatentAttention(const ModelConfig& config,
                                                               const BlockWeights& weights);

}  // namespace ptq

#endif  // PTQ_MODELS_LATENT_ATTENTION_H_
