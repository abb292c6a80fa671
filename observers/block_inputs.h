// The inputs of a decoder block for all calibration samples, in two chains: through full-precision
// blocks and through the quantized blocks before it.
#ifndef PTQ_OBSERVERS_BLOCK_INPUTS_H_
#define PTQ_OBSERVERS_BLOCK_INPUTS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "models/decoder_block.h"

namespace ptq {

struct BlockInputs {
  at::Tensor full_precision;  // [S, T, D] compute dtype, device; undefined: there is no such chain
  at::Tensor quantized;       // the same shape; equal to full_precision before the first block
  at::Tensor token_mask;      // [S, T] float32: 0 where the loss must not look
};

// Runs `block` over all samples of `inputs` [S, T, D] in micro-batches of `batch` samples, without
// autograd, and returns its outputs, [S, T, D]. `apply` as in DecoderBlock::Forward; an empty
// function uses the block's own weights. The micro-batch is fixed by the caller: equal calls give
// equal bits.
at::Tensor RunBlock(const DecoderBlock& block, const at::Tensor& inputs, const RotaryTable& rotary,
                    int64_t batch, const LinearFunction& apply = {});

// The same into `outputs` [S, T, D], which may be `inputs` itself: a micro-batch is read before it
// is written.
void RunBlockInto(const DecoderBlock& block, const at::Tensor& inputs, const RotaryTable& rotary,
                  int64_t batch, const LinearFunction& apply, at::Tensor& outputs);

// The mask of auto-round: 1, but 0 at the last position of every sample.
at::Tensor LastPositionMask(int64_t samples, int64_t length, at::Device device);

}  // namespace ptq

#endif  // PTQ_OBSERVERS_BLOCK_INPUTS_H_
