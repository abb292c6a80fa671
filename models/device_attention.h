// Causal attention with its gradient on a CUDA device, without autograd, in 16-bit dtypes.
#ifndef PTQ_MODELS_DEVICE_ATTENTION_H_
#define PTQ_MODELS_DEVICE_ATTENTION_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "algorithms/cuda/attention_spans.h"

namespace ptq {

// Query, key and value heads of a token next to each other in rows [n, (heads + 2 key_heads) ·
// head_dim]: views.
struct PackedHeads {
  PackedHeads(const at::Tensor& rows, int64_t heads, int64_t key_heads, int64_t head_dim);
  at::Tensor query;
  at::Tensor key;
  at::Tensor value;
  at::Tensor query_and_key;
};

// By cuDNN where it has a deterministic kernel for the device and the shape, else by ATen's flash
// attention, which is slower.
class DeviceAttention {
 public:
  // Workspace of the backward pass; where one sample takes more, it gets it.
  static constexpr int64_t kWorkspaceBytes = int64_t{5} << 28;

  struct Shape {
    int64_t batch = 0;
    int64_t length = 0;
    int64_t heads = 0;
    int64_t key_heads = 0;
    int64_t head_dim = 0;
    int64_t workspace_bytes = kWorkspaceBytes;
  };
  // query [batch · length, heads · head_dim], key and value with key_heads; columns are contiguous,
  // rows may be part of wider ones. Returns attention's output, [batch · length, heads · head_dim]
  // contiguous. Keeps what Backward needs.
  at::Tensor Forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const Shape& shape);
  // From dL / d output of the last Forward dL / d (query, key, value) in one row:
  // [batch · length, (heads + 2 key_heads) · head_dim].
  at::Tensor Backward(const at::Tensor& output_gradient) const;

 private:
  // Of samples [begin, begin + count), for the forward pass.
  AttentionSpans Spans(int64_t begin, int64_t count) const;

  Shape shape_;
  at::Tensor query_;
  at::Tensor key_;
  at::Tensor value_;
  at::Tensor output_;
  at::Tensor log_sum_exp_;  // [batch, heads, length] float32
  at::Tensor philox_seed_;  // flash attention's; undefined: it was cuDNN
  at::Tensor philox_offset_;
};

}  // namespace ptq

#endif  // PTQ_MODELS_DEVICE_ATTENTION_H_
