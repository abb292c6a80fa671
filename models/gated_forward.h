// A forward pass without autograd through a block of the common shape on a CUDA device.
#ifndef PTQ_MODELS_GATED_FORWARD_H_
#define PTQ_MODELS_GATED_FORWARD_H_

#include <ATen/core/Tensor.h>

#include "models/decoder_block.h"

namespace ptq {

// hidden [B, T, D] -> [B, T, D] contiguous, T being the rotary table's length: products by `apply`,
// the rest by device_ops.h and device_attention.h. `parts` are PartsForDeviceOps,
// `hidden` is of their dtype. What `apply` returns for query and key is rotated in place. Throws
// c10::Error; only queues work. Equal calls give equal bits.
at::Tensor GatedForward(const GatedBlockParts& parts, const at::Tensor& hidden,
                        const RotaryTable& rotary, const LinearFunction& apply);

}  // namespace ptq

#endif  // PTQ_MODELS_GATED_FORWARD_H_
