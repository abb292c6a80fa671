// One decoder block, as quantizers see it: a function of hidden states with replaceable linears.
#ifndef PTQ_MODELS_DECODER_BLOCK_H_
#define PTQ_MODELS_DECODER_BLOCK_H_

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "models/linear.h"

namespace ptq {

// cos and sin of one sequence length, shared by all blocks: [T, rotary_dim] in the compute dtype.
struct RotaryTable {
  at::Tensor cos;
  at::Tensor sin;
};

// Thread-compatible; Forward is const and has no state. Implementations: LlamaBlock.
class DecoderBlock {
 public:
  virtual ~DecoderBlock() = default;

  // "model.layers.0".
  virtual const std::string& name() const = 0;
  // In the tensor table's order.
  virtual const std::vector<Linear>& linears() const = 0;
  virtual std::vector<Linear>& mutable_linears() = 0;

  // hidden [B, T, D] -> [B, T, D], causal attention without padding. Every linear goes through
  // `apply`. Differentiable with respect to what `apply` uses; may throw c10::Error.
  virtual at::Tensor Forward(const at::Tensor& hidden, const RotaryTable& rotary,
                             const LinearFunction& apply) const = 0;
  // The same with the block's own weights.
  at::Tensor Forward(const at::Tensor& hidden, const RotaryTable& rotary) const;
};

}  // namespace ptq

#endif  // PTQ_MODELS_DECODER_BLOCK_H_
