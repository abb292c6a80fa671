#include "models/decoder_block.h"

#include <ATen/core/grad_mode.h>

#include "models/device_ops.h"
#include "models/gated_forward.h"

namespace ptq {

at::Tensor DecoderBlock::Forward(const at::Tensor& hidden, const RotaryTable& rotary,
                                 const LinearFunction& apply) const {
  if (hidden.is_cuda() && !at::GradMode::is_enabled()) {
    const std::optional<GatedBlockParts> parts = PartsForDeviceOps(*this, hidden.size(1));
    if (parts) return GatedForward(*parts, hidden, rotary, apply);
  }
  return ForwardByTensors(hidden, rotary, apply);
}

at::Tensor DecoderBlock::Forward(const at::Tensor& hidden, const RotaryTable& rotary) const {
  return Forward(hidden, rotary, [this](size_t index, const at::Tensor& input) {
    const Linear& linear = linears()[index];
    return ApplyLinear(linear, linear.weight, input);
  });
}

}  // namespace ptq
