// What stands between the products of a block of the common shape (GatedBlockParts), on a CUDA
// device in 16-bit dtypes: one kernel each (algorithms/cuda/block_spans.h), without autograd.
// Methods throw c10::Error and only queue work.
#ifndef PTQ_MODELS_DEVICE_OPS_H_
#define PTQ_MODELS_DEVICE_OPS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "models/decoder_block.h"

namespace ptq {

// The block's parts for sequences of `length` tokens, if it has the shape and the kernels and
// DeviceAttention take it: on CUDA, in bfloat16 or float16, with widths of whole packs.
std::optional<GatedBlockParts> PartsForDeviceOps(const DecoderBlock& block, int64_t length);

// A norm with what its gradient needs.
struct NormedSum {
  at::Tensor sum;          // [n, D]: rows + branch
  at::Tensor normalized;   // [n, D]: its norm
  at::Tensor inverse_rms;  // [n] float32, of `sum`
};
// Rows [n, D], contiguous; `branch` the same, or undefined, and `sum` is `rows` itself.
NormedSum DeviceNormedSum(const at::Tensor& rows, const at::Tensor& branch,
                          const at::Tensor& weight, double epsilon);
// The gradient of `sum`: what reaches it directly, and through the norm from that of `normalized`.
at::Tensor DeviceNormedSumBackward(const NormedSum& forward, const at::Tensor& weight,
                                   const at::Tensor& gradient, const at::Tensor& residual);

// Rotates each head of rows [batch · length, heads · head_dim] by its token's position, in place;
// back if `inverse`. Columns are contiguous, rows may be part of wider ones.
void DeviceRotate(const at::Tensor& rows, int64_t head_dim, const RotaryTable& rotary,
                  bool inverse);

// silu(gate) · up, [n, I] contiguous. Both are contiguous, or halves of rows [n, 2 I].
at::Tensor DeviceGated(const at::Tensor& gate, const at::Tensor& up);
// Puts the gradients of gate and up in their place.
void DeviceGatedBackward(const at::Tensor& hidden_gradient, const at::Tensor& gate,
                         const at::Tensor& up);

}  // namespace ptq

#endif  // PTQ_MODELS_DEVICE_OPS_H_
