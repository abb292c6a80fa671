// One decoder block, as quantizers see it: a function of hidden states with replaceable linears.
#ifndef PTQ_MODELS_DECODER_BLOCK_H_
#define PTQ_MODELS_DECODER_BLOCK_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "models/linear.h"

namespace ptq {

// cos and sin of one sequence length, shared by all blocks: [T, rotary_dim] in the compute dtype;
// undefined in a model without rotary embeddings.
struct RotaryTable {
  at::Tensor cos;
  at::Tensor sin;
  // Of blocks with a sliding window, where they have another one.
  std::shared_ptr<const RotaryTable> local;
};

// The parts of a block of the common shape, for engines that run it by kernels of their own:
//   attended = hidden + O attention(rotary(Q n), rotary(K n), V n), n = rms_norm(hidden)
//   output = attended + Down(silu(Gate n') * Up n'), n' = rms_norm(attended)
// with causal attention scaled by 1 / sqrt(head_dim), and the arithmetic of NormKind::kRms and
// ApplyRotary.
struct GatedBlockParts {
  // Indices into DecoderBlock::linears().
  size_t query = 0;
  size_t key = 0;
  size_t value = 0;
  size_t output = 0;
  size_t gate = 0;
  size_t up = 0;
  size_t down = 0;
  at::Tensor input_norm;           // [D]
  at::Tensor post_attention_norm;  // [D]
  double rms_norm_eps = 0;
  int64_t num_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
};

// Thread-compatible; Forward is const and has no state. Implementations: TransformerBlock.
class DecoderBlock {
 public:
  virtual ~DecoderBlock() = default;

  // "model.layers.0".
  virtual const std::string& name() const = 0;
  // In the tensor table's order.
  virtual const std::vector<Linear>& linears() const = 0;
  virtual std::vector<Linear>& mutable_linears() = 0;

  // hidden [B, T, D] -> [B, T, D], causal attention without padding. Every linear goes through
  // `apply`, whose results the block may change in place. Differentiable with respect to what
  // `apply` uses; may throw c10::Error.
  //
  // Where autograd is off, blocks with gated_parts on CUDA in 16 bits go through kernels of our
  // own (gated_forward.h): the same within rounding, with fewer roundings.
  at::Tensor Forward(const at::Tensor& hidden, const RotaryTable& rotary,
                     const LinearFunction& apply) const;
  // The same with the block's own weights.
  at::Tensor Forward(const at::Tensor& hidden, const RotaryTable& rotary) const;
  // None if the block has another shape, for sequences of `length` tokens: a sliding window counts
  // in longer ones than itself.
  virtual std::optional<GatedBlockParts> gated_parts(int64_t length) const = 0;

 private:
  // Forward by tensor operations, on every device and in every dtype.
  virtual at::Tensor ForwardByTensors(const at::Tensor& hidden, const RotaryTable& rotary,
                                      const LinearFunction& apply) const = 0;
};

}  // namespace ptq

#endif  // PTQ_MODELS_DECODER_BLOCK_H_
