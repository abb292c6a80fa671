// The inputs of a decoder block for all calibration samples, in two chains: through full-precision
// blocks and through the quantized blocks before it.
#ifndef PTQ_OBSERVERS_BLOCK_INPUTS_H_
#define PTQ_OBSERVERS_BLOCK_INPUTS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "models/decoder_block.h"

namespace ptq {

struct BlockInputs {
  // [S, T, D] compute dtype, on the device or in host memory; undefined: there is no such chain.
  at::Tensor full_precision;
  at::Tensor quantized;   // the same; equal to full_precision while nothing is quantized
  at::Tensor token_mask;  // [S, T] float32, device: 0 where the loss must not look
};

// Runs `block` over all samples of `inputs` [S, T, D] in micro-batches of `batch` samples, without
// autograd, and returns its outputs, [S, T, D]. `apply` as in DecoderBlock::Forward; an empty
// function uses the block's own weights. The micro-batch is fixed by the caller: equal calls give
// equal bits. Samples in host memory are copied to the block's device and back, to the same bits.
at::Tensor RunBlock(const DecoderBlock& block, const at::Tensor& inputs, const RotaryTable& rotary,
                    int64_t batch, const LinearFunction& apply = {});

// The same into `outputs` [S, T, D], which may be `inputs` itself: a micro-batch is read before it
// is written. Outputs in host memory are complete when it returns.
void RunBlockInto(const DecoderBlock& block, const at::Tensor& inputs, const RotaryTable& rotary,
                  int64_t batch, const LinearFunction& apply, at::Tensor& outputs);

// Where the block's weights lie.
at::Device DeviceOf(const DecoderBlock& block);

// `samples` on `device`; the copy is queued where they lie in host memory.
at::Tensor ToDevice(const at::Tensor& samples, at::Device device);

// The mask of auto-round: 1, but 0 at the last position of every sample.
at::Tensor LastPositionMask(int64_t samples, int64_t length, at::Device device);

}  // namespace ptq

#endif  // PTQ_OBSERVERS_BLOCK_INPUTS_H_
