// The gradient of a decoder block's input.
#ifndef PTQ_MODELS_INPUT_GRADIENT_H_
#define PTQ_MODELS_INPUT_GRADIENT_H_

#include <ATen/core/Tensor.h>

#include "models/decoder_block.h"

namespace ptq {

// dL / d hidden from dL / d output, both [B, T, D], the block having its own weights. Runs the
// forward pass again for what it needs, as far as it needs it. By autograd, or where DecoderBlock's
// Forward does without tensor operations, by the same kernels and their gradients. Equal calls give
// equal bits. Throws c10::Error.
at::Tensor InputGradient(const DecoderBlock& block, const at::Tensor& hidden,
                         const RotaryTable& rotary, const at::Tensor& output_gradient);

}  // namespace ptq

#endif  // PTQ_MODELS_INPUT_GRADIENT_H_
