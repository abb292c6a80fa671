#include "algorithms/auto_round/fused_pass.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "algorithms/cuda/device_kernels.h"
#include "models/device_ops.h"

namespace ptq {
namespace {

// The SharedLinear of exactly these members, in order.
std::optional<size_t> FindShared(const std::vector<SharedLinear>& shared,
                                 const std::vector<size_t>& members) {
  const auto found = std::find_if(shared.begin(), shared.end(), [&](const SharedLinear& candidate) {
    return candidate.members == members;
  });
  if (found == shared.end()) return std::nullopt;
  return static_cast<size_t>(found - shared.begin());
}

}  // namespace

std::unique_ptr<FusedPass> FusedPass::Create(const DecoderBlock& block, const RotaryTable& rotary,
                                             const std::vector<SharedLinear>& shared, bool fp8,
                                             int64_t workspace_bytes) {
  if (!rotary.cos.defined()) return nullptr;
  const std::optional<GatedBlockParts> parts = PartsForDeviceOps(block, rotary.cos.size(0));
  if (!parts) return nullptr;
  const auto query_key_value = FindShared(shared, {parts->query, parts->key, parts->value});
  const auto output = FindShared(shared, {parts->output});
  const auto gate_up = FindShared(shared, {parts->gate, parts->up});
  const auto down = FindShared(shared, {parts->down});
  if (!query_key_value || !output || !gate_up || !down) return nullptr;
  return std::unique_ptr<FusedPass>(new FusedPass(
      *parts, rotary, shared, {*query_key_value, *output, *gate_up, *down}, fp8, workspace_bytes));
}

FusedPass::FusedPass(const GatedBlockParts& parts, const RotaryTable& rotary,
                     const std::vector<SharedLinear>& shared, const Places& places, bool fp8,
                     int64_t workspace_bytes)
    : parts_(parts),
      rotary_(rotary),
      places_(places),
      workspace_bytes_(workspace_bytes),
      query_key_value_(shared[places.query_key_value], fp8),
      output_(shared[places.output], fp8),
      gate_up_(shared[places.gate_up], fp8),
      down_(shared[places.down], fp8),
      sums_(shared.size()) {}

std::string FusedPass::Path(int64_t tokens) const {
  const bool fp8 = query_key_value_.HasFp8Product(tokens) || output_.HasFp8Product(tokens) ||
                   gate_up_.HasFp8Product(tokens) || down_.HasFp8Product(tokens);
  return fp8 ? "fused fp8" : "fused";
}

at::Tensor FusedPass::Forward(const at::Tensor& hidden) {
  saved_ = {};
  const int64_t batch = hidden.size(0);
  const at::Tensor rows = hidden.contiguous().flatten(0, 1);
  const int64_t tokens = rows.size(0);
  saved_.attention_input =
      MakeFp8Layouts(DeviceNormedSum(rows, {}, parts_.input_norm, parts_.rms_norm_eps).normalized,
                     query_key_value_.InputLayouts(tokens));
  const at::Tensor rows_of_heads = query_key_value_.Forward(saved_.attention_input);
  const PackedHeads heads = Heads(rows_of_heads);
  DeviceRotate(heads.query_and_key, parts_.head_dim, rotary_, /*inverse=*/false);
  saved_.attended =
      MakeFp8Layouts(saved_.attention.Forward(heads.query, heads.key, heads.value,
                                              {.batch = batch,
                                               .length = hidden.size(1),
                                               .heads = parts_.num_heads,
                                               .key_heads = parts_.num_key_value_heads,
                                               .head_dim = parts_.head_dim,
                                               .workspace_bytes = workspace_bytes_}),
                     output_.InputLayouts(tokens));

  saved_.middle = DeviceNormedSum(rows, output_.Forward(saved_.attended),
                                  parts_.post_attention_norm, parts_.rms_norm_eps);
  saved_.mlp_input = MakeFp8Layouts(std::exchange(saved_.middle.normalized, at::Tensor()),
                                    gate_up_.InputLayouts(tokens));
  saved_.gate_up = gate_up_.Forward(saved_.mlp_input);
  saved_.mlp_hidden = GatedHidden();
  return down_.Forward(saved_.mlp_hidden).add_(saved_.middle.sum).view(hidden.sizes());
}

Fp8Layouts FusedPass::GatedHidden() const {
  const at::Tensor& gate_up = saved_.gate_up;
  const int64_t width = gate_up.size(1) / 2;
  const Fp8Wanted wanted = down_.InputLayouts(gate_up.size(0));
  if (wanted.rows || wanted.columns) {
    return MakeFp8Layouts({.source = Fp8Source::kGated,
                           .gate_up = gate_up.const_data_ptr(),
                           .rows = gate_up.size(0),
                           .columns = width,
                           .dtype = HiddenDtypeOf(gate_up.scalar_type())},
                          wanted, gate_up);
  }
  return {.wide = DeviceGated(gate_up.narrow(1, 0, width), gate_up.narrow(1, width, width))};
}

Fp8Layouts FusedPass::GatedGradient(const at::Tensor& hidden_gradient) {
  const at::Tensor gate_up = std::exchange(saved_.gate_up, at::Tensor());
  const Fp8Wanted wanted = gate_up_.GradientLayouts(gate_up.size(0), /*of_input=*/true);
  if (wanted.rows || wanted.columns) {
    return MakeFp8Layouts({.source = Fp8Source::kGatedBackward,
                           .gate_up = gate_up.const_data_ptr(),
                           .hidden_gradient = hidden_gradient.const_data_ptr(),
                           .rows = gate_up.size(0),
                           .columns = gate_up.size(1),
                           .dtype = HiddenDtypeOf(gate_up.scalar_type())},
                          wanted, gate_up);
  }
  const int64_t width = hidden_gradient.size(1);
  DeviceGatedBackward(hidden_gradient, gate_up.narrow(1, 0, width),
                      gate_up.narrow(1, width, width));
  return {.wide = gate_up};
}

PackedHeads FusedPass::Heads(const at::Tensor& rows) const {
  return {rows, parts_.num_heads, parts_.num_key_value_heads, parts_.head_dim};
}

void FusedPass::AddGradient(size_t place, const FusedLinear& linear, const Fp8Layouts& gradient,
                            Fp8Layouts& input, const GradientSink& sink) {
  sums_[place] = linear.WeightGradient(gradient, input, sums_[place]);
  if (sink) sink(place, std::exchange(sums_[place], at::Tensor()));
}

void FusedPass::Backward(const at::Tensor& output_gradient, const GradientSink& sink) {
  const at::Tensor gradient = output_gradient.flatten(0, 1);
  const int64_t tokens = gradient.size(0);
  // A weight is read for the last time before the sink sees its gradient; layouts are released as
  // soon as they are used up.
  at::Tensor mlp_gradient;
  {
    at::Tensor hidden_gradient;
    {
      const Fp8Layouts of_output =
          MakeFp8Layouts(gradient, down_.GradientLayouts(tokens, /*of_input=*/true));
      hidden_gradient = down_.InputGradient(of_output);
      AddGradient(places_.down, down_, of_output, saved_.mlp_hidden, sink);
    }
    const Fp8Layouts of_gate_up = GatedGradient(hidden_gradient);
    hidden_gradient = at::Tensor();
    mlp_gradient = gate_up_.InputGradient(of_gate_up);
    AddGradient(places_.gate_up, gate_up_, of_gate_up, saved_.mlp_input, sink);
  }

  const at::Tensor sum_gradient =
      DeviceNormedSumBackward(saved_.middle, parts_.post_attention_norm, mlp_gradient, gradient);
  const Fp8Layouts of_sum =
      MakeFp8Layouts(sum_gradient, output_.GradientLayouts(tokens, /*of_input=*/true));
  const at::Tensor attended_gradient = output_.InputGradient(of_sum);
  AddGradient(places_.output, output_, of_sum, saved_.attended, sink);
  const at::Tensor rows_gradient = saved_.attention.Backward(attended_gradient);
  DeviceRotate(Heads(rows_gradient).query_and_key, parts_.head_dim, rotary_, /*inverse=*/true);
  const Fp8Layouts of_rows =
      MakeFp8Layouts(rows_gradient, query_key_value_.GradientLayouts(tokens, /*of_input=*/false));
  AddGradient(places_.query_key_value, query_key_value_, of_rows, saved_.attention_input, sink);
  saved_ = {};
}

}  // namespace ptq
