// softmax(q kᵀ) v over the tokens that each one may see.
#ifndef PTQ_MODELS_CAUSAL_ATTENTION_H_
#define PTQ_MODELS_CAUSAL_ATTENTION_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace ptq {

struct CausalAttentionOptions {
  std::optional<double> scale;  // none: 1 / sqrt of the query's head_dim
  double soft_cap = 0;          // logits become cap * tanh(logits / cap); 0: they don't
  int64_t window = 0;           // tokens that one sees, itself included; 0: all before it
};

// Query [B, T, heads, d], key [B, T, key heads, d] and value [B, T, key heads, e] ->
// [B, T, heads * e]. Differentiable.
at::Tensor CausalAttention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const CausalAttentionOptions& options);

}  // namespace ptq

#endif  // PTQ_MODELS_CAUSAL_ATTENTION_H_
