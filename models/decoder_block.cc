#include "models/decoder_block.h"

namespace ptq {

at::Tensor DecoderBlock::Forward(const at::Tensor& hidden, const RotaryTable& rotary) const {
  return Forward(hidden, rotary, [this](size_t index, const at::Tensor& input) {
    const Linear& linear = linears()[index];
    return ApplyLinear(linear, linear.weight, input);
  });
}

}  // namespace ptq
