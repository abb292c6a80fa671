#include "models/gated_forward.h"

#include <utility>

#include "models/device_attention.h"
#include "models/device_ops.h"

namespace ptq {

at::Tensor GatedForward(const GatedBlockParts& parts, const at::Tensor& hidden,
                        const RotaryTable& rotary, const LinearFunction& apply) {
  const int64_t batch = hidden.size(0);
  const int64_t length = hidden.size(1);
  const at::Tensor rows = hidden.contiguous().flatten(0, 1);
  // Layers see states [B, T, K], and those that share an input one and the same tensor.
  const auto states = [&](const at::Tensor& of) { return of.view({batch, length, of.size(1)}); };
  const auto project = [&](size_t linear, const at::Tensor& input) {
    return apply(linear, input).flatten(0, 1).contiguous();
  };

  at::Tensor attended;
  {
    const at::Tensor normalized =
        states(DeviceNormedSum(rows, {}, parts.input_norm, parts.rms_norm_eps).normalized);
    const at::Tensor query = project(parts.query, normalized);
    const at::Tensor key = project(parts.key, normalized);
    const at::Tensor value = project(parts.value, normalized);
    DeviceRotate(query, parts.head_dim, rotary, /*inverse=*/false);
    DeviceRotate(key, parts.head_dim, rotary, /*inverse=*/false);
    attended = DeviceAttention().Forward(query, key, value,
                                         {.batch = batch,
                                          .length = length,
                                          .heads = parts.num_heads,
                                          .key_heads = parts.num_key_value_heads,
                                          .head_dim = parts.head_dim});
  }
  NormedSum middle = DeviceNormedSum(rows, project(parts.output, states(attended)),
                                     parts.post_attention_norm, parts.rms_norm_eps);
  attended = at::Tensor();
  at::Tensor gated;
  {
    const at::Tensor normalized = states(std::exchange(middle.normalized, at::Tensor()));
    const at::Tensor gate = project(parts.gate, normalized);
    gated = DeviceGated(gate, project(parts.up, normalized));
  }
  return states(middle.sum.add_(project(parts.down, states(gated))));
}

}  // namespace ptq
