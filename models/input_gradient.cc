#include "models/input_gradient.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/autograd.h>

#include <utility>
#include <vector>

#include "models/device_attention.h"
#include "models/device_ops.h"

namespace ptq {
namespace {

at::Tensor GradientByAutograd(const DecoderBlock& block, const at::Tensor& hidden,
                              const RotaryTable& rotary, const at::Tensor& output_gradient) {
  const at::AutoGradMode with_grad(true);
  at::Tensor leaf = hidden.detach();
  leaf.set_requires_grad(true);
  const at::Tensor output = block.Forward(leaf, rotary);
  return torch::autograd::grad({output}, {leaf}, {output_gradient})[0];
}

// ApplyLinear of rows into `output`.
void ProjectInto(const Linear& linear, const at::Tensor& rows, at::Tensor output) {
  if (linear.bias.defined()) {
    at::addmm_out(output, linear.bias, rows, linear.weight.t());
  } else {
    at::mm_out(output, rows, linear.weight.t());
  }
}

at::Tensor GradientByKernels(const DecoderBlock& block, const GatedBlockParts& parts,
                             const at::Tensor& hidden, const RotaryTable& rotary,
                             const at::Tensor& output_gradient) {
  const std::vector<Linear>& linears = block.linears();
  const auto project = [&](size_t linear, const at::Tensor& rows) {
    return ApplyLinear(linears[linear], linears[linear].weight, rows);
  };
  const at::Tensor rows = hidden.contiguous().flatten(0, 1);
  const at::Tensor gradient = output_gradient.contiguous().flatten(0, 1);

  NormedSum first = DeviceNormedSum(rows, {}, parts.input_norm, parts.rms_norm_eps);
  const int64_t key_heads = parts.num_key_value_heads;
  const at::Tensor heads =
      at::empty({rows.size(0), (parts.num_heads + 2 * key_heads) * parts.head_dim}, rows.options());
  const PackedHeads packed(heads, parts.num_heads, key_heads, parts.head_dim);
  ProjectInto(linears[parts.query], first.normalized, packed.query);
  ProjectInto(linears[parts.key], first.normalized, packed.key);
  ProjectInto(linears[parts.value], first.normalized, packed.value);
  first.normalized = at::Tensor();
  DeviceRotate(packed.query_and_key, parts.head_dim, rotary, /*inverse=*/false);
  DeviceAttention attention;
  const at::Tensor attended = attention.Forward(packed.query, packed.key, packed.value,
                                                {.batch = hidden.size(0),
                                                 .length = hidden.size(1),
                                                 .heads = parts.num_heads,
                                                 .key_heads = key_heads,
                                                 .head_dim = parts.head_dim});
  NormedSum middle = DeviceNormedSum(rows, project(parts.output, attended),
                                     parts.post_attention_norm, parts.rms_norm_eps);
  const at::Tensor gate = project(parts.gate, middle.normalized);
  const at::Tensor up = project(parts.up, middle.normalized);
  middle.normalized = at::Tensor();

  DeviceGatedBackward(at::mm(gradient, linears[parts.down].weight), gate, up);
  const at::Tensor mlp_gradient =
      at::mm(gate, linears[parts.gate].weight).addmm_(up, linears[parts.up].weight);
  const at::Tensor middle_gradient =
      DeviceNormedSumBackward(middle, parts.post_attention_norm, mlp_gradient, gradient);
  const at::Tensor heads_gradient =
      attention.Backward(at::mm(middle_gradient, linears[parts.output].weight));
  const PackedHeads gradients(heads_gradient, parts.num_heads, key_heads, parts.head_dim);
  DeviceRotate(gradients.query_and_key, parts.head_dim, rotary, /*inverse=*/true);
  const at::Tensor input_gradient = at::mm(gradients.query, linears[parts.query].weight)
                                        .addmm_(gradients.key, linears[parts.key].weight)
                                        .addmm_(gradients.value, linears[parts.value].weight);
  return DeviceNormedSumBackward(first, parts.input_norm, input_gradient, middle_gradient)
      .view(hidden.sizes());
}

}  // namespace

at::Tensor InputGradient(const DecoderBlock& block, const at::Tensor& hidden,
                         const RotaryTable& rotary, const at::Tensor& output_gradient) {
  if (hidden.is_cuda()) {
    const std::optional<GatedBlockParts> parts = PartsForDeviceOps(block, hidden.size(1));
    if (parts) {
      const at::NoGradGuard no_grad;
      return GradientByKernels(block, *parts, hidden, rotary, output_gradient);
    }
  }
  return GradientByAutograd(block, hidden, rotary, output_gradient);
}

}  // namespace ptq
