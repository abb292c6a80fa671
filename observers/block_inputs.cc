#include "observers/block_inputs.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>

namespace ptq {

at::Tensor RunBlock(const DecoderBlock& block, const at::Tensor& inputs, const RotaryTable& rotary,
                    int64_t batch, const LinearFunction& apply) {
  at::Tensor outputs = at::empty_like(inputs, at::MemoryFormat::Contiguous);
  RunBlockInto(block, inputs, rotary, batch, apply, outputs);
  return outputs;
}

void RunBlockInto(const DecoderBlock& block, const at::Tensor& inputs, const RotaryTable& rotary,
                  int64_t batch, const LinearFunction& apply, at::Tensor& outputs) {
  at::NoGradGuard no_grad;
  const at::Device device = DeviceOf(block);
  const int64_t samples = inputs.size(0);
  for (int64_t begin = 0; begin < samples; begin += batch) {
    const int64_t count = std::min(batch, samples - begin);
    const at::Tensor input = ToDevice(inputs.narrow(0, begin, count), device);
    outputs.narrow(0, begin, count)
        .copy_(apply ? block.Forward(input, rotary, apply) : block.Forward(input, rotary),
               /*non_blocking=*/true);
  }
  if (outputs.device() != device) {
    c10::impl::VirtualGuardImpl(device.type()).getStream(device).synchronize();
  }
}

at::Device DeviceOf(const DecoderBlock& block) { return block.linears().front().weight.device(); }

at::Tensor ToDevice(const at::Tensor& samples, at::Device device) {
  return samples.to(device, samples.scalar_type(), /*non_blocking=*/true);
}

at::Tensor LastPositionMask(int64_t samples, int64_t length, at::Device device) {
  at::Tensor mask = at::ones({samples, length}, at::TensorOptions(device).dtype(at::kFloat));
  mask.select(1, length - 1).zero_();
  return mask;
}

}  // namespace ptq
