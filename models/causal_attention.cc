#include "models/causal_attention.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <vector>

namespace ptq {
namespace {

// [T, T], true where a row's token sees a column's.
at::Tensor Visible(int64_t length, int64_t window, at::Device device) {
  at::Tensor mask = at::ones({length, length}, at::TensorOptions(device).dtype(at::kBool)).tril();
  return window > 0 ? mask.triu(1 - window) : mask;
}

// One sample, heads first: query [H, T, d], key and value [G, T, d]. The logits of all its heads
// exist at once.
at::Tensor CappedSample(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                        const at::Tensor& visible, double scale, double soft_cap) {
  const int64_t groups = query.size(0) / key.size(0);
  const at::Tensor logits =
      at::matmul(query, key.repeat_interleave(groups, 0).transpose(-2, -1)) * scale;
  const at::Tensor capped = (logits / soft_cap).tanh() * soft_cap;
  const at::Tensor weights = at::softmax(
      capped.masked_fill(visible.logical_not(), -std::numeric_limits<double>::infinity()), -1,
      at::kFloat);
  return at::matmul(weights.to(query.scalar_type()), value.repeat_interleave(groups, 0));
}

}  // namespace

at::Tensor CausalAttention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const CausalAttentionOptions& options) {
  const int64_t length = query.size(1);
  const bool windowed = options.window > 0 && options.window < length;
  if (options.soft_cap > 0) {  // which no fused kernel of libtorch has
    const double scale = options.scale.value_or(1 / std::sqrt(static_cast<double>(query.size(-1))));
    const at::Tensor visible = Visible(length, windowed ? options.window : 0, query.device());
    std::vector<at::Tensor> samples;
    for (int64_t sample = 0; sample < query.size(0); ++sample) {
      const auto heads_first = [sample](const at::Tensor& states) {
        return states.select(0, sample).transpose(0, 1);
      };
      samples.push_back(CappedSample(heads_first(query), heads_first(key), heads_first(value),
                                     visible, scale, options.soft_cap));
    }
    return at::stack(samples).transpose(1, 2).flatten(2);
  }
  const int64_t groups = query.size(2) / key.size(2);
  // On CUDA only the half-precision kernels take fewer key than query heads; with enable_gqa
  // float32 would fall back to a T x T softmax, so its heads are repeated.
  const bool repeat = groups > 1 && query.is_cuda() && query.scalar_type() == at::kFloat;
  const auto heads_first = [&](const at::Tensor& states) {
    return (repeat ? states.repeat_interleave(groups, 2) : states).transpose(1, 2);
  };
  std::optional<at::Tensor> mask;
  if (windowed) mask = Visible(length, options.window, query.device());
  return at::scaled_dot_product_attention(query.transpose(1, 2), heads_first(key),
                                          heads_first(value), mask, /*dropout_p=*/0.0,
                                          /*is_causal=*/!windowed, options.scale,
                                          /*enable_gqa=*/groups > 1 && !repeat)
      .transpose(1, 2)
      .flatten(2);
}

}  // namespace ptq
