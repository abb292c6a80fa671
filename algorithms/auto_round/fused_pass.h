// A block's pass by products, attention and kernels of our own between them, without autograd.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_FUSED_PASS_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_FUSED_PASS_H_

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "algorithms/auto_round/block_pass.h"
#include "algorithms/auto_round/fused_linear.h"
#include "models/decoder_block.h"
#include "models/device_attention.h"
#include "models/device_ops.h"

namespace ptq {

class FusedPass final : public BlockPass {
 public:
  // nullptr where only AutogradPass can run the block: another device than CUDA or another dtype
  // than bfloat16 and float16, a block without gated_parts, linears that are not tuned, widths
  // that the kernels do not take. `fp8`: products in FP8 where they can be (fused_linear.h); only
  // with bfloat16 and HasFp8Products(). `workspace_bytes`: DeviceAttention's. Everything borrowed
  // outlives it; the shared weights may be made later.
  static std::unique_ptr<FusedPass> Create(
      const DecoderBlock& block, const RotaryTable& rotary, const std::vector<SharedLinear>& shared,
      bool fp8, int64_t workspace_bytes = DeviceAttention::kWorkspaceBytes);

  std::string Path(int64_t tokens) const override;
  at::Tensor Forward(const at::Tensor& hidden) override;
  void Backward(const at::Tensor& output_gradient, const GradientSink& sink) override;

 private:
  // Where each product is in `shared`.
  struct Places {
    size_t query_key_value;
    size_t output;
    size_t gate_up;
    size_t down;
  };
  // What Backward reads of the last Forward; rows are tokens.
  struct Saved {
    Fp8Layouts attention_input;  // [n, D], normalized
    DeviceAttention attention;
    Fp8Layouts attended;    // [n, H head_dim]: attention's output
    NormedSum middle;       // hidden + attention, without its norm
    Fp8Layouts mlp_input;   // [n, D], normalized
    at::Tensor gate_up;     // [n, 2 I]
    Fp8Layouts mlp_hidden;  // [n, I]
  };

  FusedPass(const GatedBlockParts& parts, const RotaryTable& rotary,
            const std::vector<SharedLinear>& shared, const Places& places, bool fp8,
            int64_t workspace_bytes);
  Fp8Layouts GatedHidden() const;
  // The gradient of Saved::gate_up, from that of mlp_hidden.
  Fp8Layouts GatedGradient(const at::Tensor& hidden_gradient);
  // Adds a weight's gradient to its sum; with a sink, hands that over.
  void AddGradient(size_t place, const FusedLinear& linear, const Fp8Layouts& gradient,
                   Fp8Layouts& input, const GradientSink& sink);
  PackedHeads Heads(const at::Tensor& rows) const;

  const GatedBlockParts parts_;
  const RotaryTable& rotary_;
  const Places places_;
  const int64_t workspace_bytes_;
  const FusedLinear query_key_value_;
  const FusedLinear output_;
  const FusedLinear gate_up_;
  const FusedLinear down_;
  Saved saved_;
  std::vector<at::Tensor> sums_;  // of gradients, by SharedLinear; undefined: none yet
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_FUSED_PASS_H_
