#include "algorithms/auto_round/autograd_pass.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <utility>

namespace ptq {

AutogradPass::AutogradPass(const DecoderBlock& block, const RotaryTable& rotary,
                           const std::vector<at::Tensor>& fixed_weights,
                           std::vector<SharedLinear>& shared)
    : block_(block),
      rotary_(rotary),
      fixed_weights_(fixed_weights),
      shared_(shared),
      places_(block.linears().size(), Place{0, 0, false}),
      products_(shared.size()),
      sums_(shared.size()) {
  for (size_t i = 0; i < shared.size(); ++i) {
    for (size_t position = 0; position < shared[i].members.size(); ++position) {
      places_[shared[i].members[position]] = {i, position, true};
    }
    shared[i].weight.set_requires_grad(true);
  }
}

const at::Tensor& AutogradPass::OutputOf(const Place& place, const at::Tensor& input) {
  Product& product = products_[place.shared];
  if (!product.input.is_same(input)) {
    const SharedLinear& shared = shared_[place.shared];
    product.input = input;
    const at::Tensor all = ApplyLinear(shared.weight, shared.bias, input);
    product.outputs = shared.members.size() == 1 ? std::vector<at::Tensor>{all}
                                                 : all.split_with_sizes(shared.rows, -1);
  }
  return product.outputs[place.position];
}

at::Tensor AutogradPass::Forward(const at::Tensor& hidden) {
  const std::vector<Linear>& linears = block_.linears();
  {
    const at::AutoGradMode with_grad(true);
    output_ = block_
                  .Forward(hidden, rotary_,
                           [&](size_t index, const at::Tensor& input) {
                             return places_[index].tuned
                                        ? OutputOf(places_[index], input)
                                        : ApplyLinear(linears[index], fixed_weights_[index], input);
                           })
                  .contiguous();
  }
  for (Product& product : products_) product = {};  // frees what autograd does not need
  return output_.detach();
}

void AutogradPass::Backward(const at::Tensor& output_gradient, const GradientSink& sink) {
  std::vector<at::Tensor> weights;
  for (const SharedLinear& shared : shared_) weights.push_back(shared.weight);
  const at::Tensor output = std::exchange(output_, at::Tensor());
  std::vector<at::Tensor> gradients(weights.size());
  if (output.requires_grad()) {  // or no token reached any of them
    gradients = torch::autograd::grad({output}, weights, {output_gradient}, /*retain_graph=*/false,
                                      /*create_graph=*/false, /*allow_unused=*/true);
  }
  for (size_t i = 0; i < gradients.size(); ++i) {
    at::Tensor& sum = sums_[i];
    if (gradients[i].defined()) {
      sum = sum.defined() ? sum.add_(gradients[i]) : gradients[i].contiguous();
    }
    if (!sink) continue;
    sink(i, sum.defined() ? std::exchange(sum, at::Tensor()) : at::zeros_like(weights[i]));
  }
}

}  // namespace ptq
