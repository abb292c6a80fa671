// A block's pass by autograd, for every block and device.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_AUTOGRAD_PASS_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_AUTOGRAD_PASS_H_

#include <ATen/core/Tensor.h>

#include <vector>

#include "algorithms/auto_round/block_pass.h"
#include "models/decoder_block.h"

namespace ptq {

class AutogradPass final : public BlockPass {
 public:
  // Linears in no SharedLinear have `fixed_weights`, by linear index. Everything borrowed outlives
  // it. Makes the shared weights leaves of autograd.
  AutogradPass(const DecoderBlock& block, const RotaryTable& rotary,
               const std::vector<at::Tensor>& fixed_weights, std::vector<SharedLinear>& shared);

  std::string Path(int64_t /*tokens*/) const override { return "autograd"; }
  at::Tensor Forward(const at::Tensor& hidden) override;
  void Backward(const at::Tensor& output_gradient, const GradientSink& sink) override;

 private:
  // The product that all members of a SharedLinear take their outputs from.
  struct Product {
    at::Tensor input;
    std::vector<at::Tensor> outputs;  // by member
  };
  struct Place {
    size_t shared;
    size_t position;
    bool tuned;
  };
  const at::Tensor& OutputOf(const Place& place, const at::Tensor& input);

  const DecoderBlock& block_;
  const RotaryTable& rotary_;
  const std::vector<at::Tensor>& fixed_weights_;
  std::vector<SharedLinear>& shared_;
  std::vector<Place> places_;      // by linear index
  std::vector<Product> products_;  // of the forward pass in progress, by SharedLinear
  at::Tensor output_;
  std::vector<at::Tensor> sums_;  // of gradients, by SharedLinear; undefined: none yet
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_AUTOGRAD_PASS_H_
