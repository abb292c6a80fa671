// One linear layer of a decoder block.
#ifndef PTQ_MODELS_LINEAR_H_
#define PTQ_MODELS_LINEAR_H_

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>

namespace ptq {

struct Linear {
  std::string module;  // "model.layers.0.self_attn.q_proj"
  at::Tensor weight;   // [N, K], the block's compute dtype and device
  at::Tensor bias;     // [N], or undefined
};

// How a block applies its linear layer `index` (into DecoderBlock::linears()) to `input` [..., K],
// giving [..., N]. The seam by which observers see inputs and quantizers replace weights.
using LinearFunction = std::function<at::Tensor(size_t index, const at::Tensor& input)>;

// input · weightᵀ + bias, with another weight of the same shape. Differentiable.
at::Tensor ApplyLinear(const Linear& linear, const at::Tensor& weight, const at::Tensor& input);
// The same of a weight [N, K] and a bias [N] or undefined.
at::Tensor ApplyLinear(const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& input);

}  // namespace ptq

#endif  // PTQ_MODELS_LINEAR_H_
