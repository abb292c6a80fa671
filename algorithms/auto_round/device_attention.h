// Causal attention with its gradient on a CUDA device, without autograd, in 16-bit dtypes.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_DEVICE_ATTENTION_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_DEVICE_ATTENTION_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace ptq {

// By cuDNN where it has a deterministic kernel for the device and the shape, else by ATen's flash
// attention, which is slower. Query, key and value heads of a token lie in one row:
// rows [batch · length, (heads + 2 key_heads) · head_dim].
class DeviceAttention {
 public:
  struct Shape {
    int64_t batch = 0;
    int64_t length = 0;
    int64_t heads = 0;
    int64_t key_heads = 0;
    int64_t head_dim = 0;
  };
  // Attention's output, [batch · length, heads · head_dim] contiguous. Keeps what Backward needs.
  at::Tensor Forward(const at::Tensor& rows, const Shape& shape);
  // dL / d rows from dL / d output, both of the last Forward.
  at::Tensor Backward(const at::Tensor& output_gradient) const;

 private:
  Shape shape_;
  at::Tensor rows_;
  at::Tensor output_;
  at::Tensor log_sum_exp_;  // [batch, heads, length] float32
  at::Tensor philox_seed_;  // flash attention's; undefined: it was cuDNN
  at::Tensor philox_offset_;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_DEVICE_ATTENTION_H_
