// A block's pass by products, attention and kernels of our own between them, without autograd.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_FUSED_PASS_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_FUSED_PASS_H_

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "algorithms/auto_round/block_pass.h"
#include "algorithms/auto_round/device_attention.h"
#include "models/decoder_block.h"

namespace ptq {

class FusedPass final : public BlockPass {
 public:
  // nullptr where only AutogradPass can run the block: another device than CUDA or another dtype
  // than bfloat16 and float16, a block without gated_parts(), linears that are not tuned, widths
  // that the kernels do not take. Everything borrowed outlives it.
  static std::unique_ptr<FusedPass> Create(const DecoderBlock& block, const RotaryTable& rotary,
                                           const std::vector<SharedLinear>& shared);

  at::Tensor Forward(const at::Tensor& hidden) override;
  void Backward(const at::Tensor& output_gradient, const GradientSink& sink) override;

 private:
  // Where each product is in `shared`.
  struct Products {
    size_t query_key_value;
    size_t output;
    size_t gate_up;
    size_t down;
  };
  // What Backward reads of the last Forward; rows are tokens.
  struct Saved {
    int64_t batch = 0;
    int64_t length = 0;
    at::Tensor attention_input;  // [n, D], normalized
    at::Tensor query_key_value;  // [n, (H + 2 KV) head_dim], rotated
    DeviceAttention attention;
    at::Tensor attended;     // [n, H head_dim]: attention's output
    at::Tensor sum;          // [n, D]: hidden + attention
    at::Tensor mlp_input;    // [n, D], normalized
    at::Tensor inverse_rms;  // [n] float32, of `sum`
    at::Tensor gate_up;      // [n, 2 I]
    at::Tensor mlp_hidden;   // [n, I]
  };

  FusedPass(const GatedBlockParts& parts, const RotaryTable& rotary,
            const std::vector<SharedLinear>& shared, const Products& products)
      : parts_(parts), rotary_(rotary), shared_(shared), products_(products) {}
  at::Tensor Product(const at::Tensor& input, size_t shared) const;
  // Rotates the heads of `rows`, laid out like Saved::query_key_value, in place.
  void Rotate(const at::Tensor& rows, bool inverse) const;

  const GatedBlockParts parts_;
  const RotaryTable& rotary_;
  const std::vector<SharedLinear>& shared_;
  const Products products_;
  Saved saved_;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_FUSED_PASS_H_
