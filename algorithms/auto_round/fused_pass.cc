#include "algorithms/auto_round/fused_pass.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "algorithms/auto_round/device_kernels.h"
#include "algorithms/auto_round/hidden_dtype.h"

namespace ptq {
namespace {

constexpr int64_t kWidestHead = 256;  // of flash attention

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
                                             const std::vector<SharedLinear>& shared, bool fp8) {
  const std::optional<GatedBlockParts> parts = block.gated_parts();
  if (!parts || !parts->input_norm.is_cuda()) return nullptr;
  const at::ScalarType dtype = parts->input_norm.scalar_type();
  const int64_t intermediate = block.linears()[parts->down].weight.size(1);
  const int64_t width = parts->input_norm.size(0);
  if ((dtype != at::kBFloat16 && dtype != at::kHalf) || width % kHiddenPack != 0 ||
      width > kWidestRow || intermediate % kHiddenPack != 0 ||
      parts->head_dim % (2 * kHiddenPack) != 0 || parts->head_dim > kWidestHead) {
    return nullptr;
  }
  const auto query_key_value = FindShared(shared, {parts->query, parts->key, parts->value});
  const auto output = FindShared(shared, {parts->output});
  const auto gate_up = FindShared(shared, {parts->gate, parts->up});
  const auto down = FindShared(shared, {parts->down});
  if (!query_key_value || !output || !gate_up || !down) return nullptr;
  return std::unique_ptr<FusedPass>(
      new FusedPass(*parts, rotary, shared, {*query_key_value, *output, *gate_up, *down}, fp8));
}

FusedPass::FusedPass(const GatedBlockParts& parts, const RotaryTable& rotary,
                     const std::vector<SharedLinear>& shared, const Places& places, bool fp8)
    : parts_(parts),
      rotary_(rotary),
      places_(places),
      query_key_value_(shared[places.query_key_value], fp8),
      output_(shared[places.output], fp8),
      gate_up_(shared[places.gate_up], fp8),
      down_(shared[places.down], fp8) {}

std::string FusedPass::Path(int64_t tokens) const {
  const bool fp8 = query_key_value_.HasFp8Product(tokens) || output_.HasFp8Product(tokens) ||
                   gate_up_.HasFp8Product(tokens) || down_.HasFp8Product(tokens);
  return fp8 ? "fused fp8" : "fused";
}

at::Tensor FusedPass::Forward(const at::Tensor& hidden) {
  saved_ = {};
  saved_.batch = hidden.size(0);
  saved_.length = hidden.size(1);
  const at::Tensor rows = hidden.contiguous().flatten(0, 1);
  const CudaApi& cuda = CudaKernels();
  const int64_t tokens = rows.size(0);
  at::Tensor normalized = at::empty_like(rows);
  RmsNormSpans norm = {.input = rows.const_data_ptr(),
                       .weight = parts_.input_norm.const_data_ptr(),
                       .output = normalized.mutable_data_ptr(),
                       .rows = tokens,
                       .width = rows.size(1),
                       .epsilon = static_cast<float>(parts_.rms_norm_eps),
                       .dtype = HiddenDtypeOf(rows.scalar_type())};
  CheckCuda(cuda.rms_norm(norm, cuda.current_stream()));
  saved_.attention_input = MakeFp8Layouts(normalized, query_key_value_.InputLayouts(tokens));
  normalized = at::Tensor();
  const at::Tensor query_key_value = query_key_value_.Forward(saved_.attention_input);
  Rotate(query_key_value, /*inverse=*/false);
  saved_.attended = MakeFp8Layouts(
      saved_.attention.Forward(query_key_value, {.batch = saved_.batch,
                                                 .length = saved_.length,
                                                 .heads = parts_.num_heads,
                                                 .key_heads = parts_.num_key_value_heads,
                                                 .head_dim = parts_.head_dim}),
      output_.InputLayouts(tokens));
  const at::Tensor branch = output_.Forward(saved_.attended);

  saved_.sum = at::empty_like(rows);
  normalized = at::empty_like(rows);
  saved_.inverse_rms = at::empty({tokens}, rows.options().dtype(at::kFloat));
  norm.branch = branch.const_data_ptr();
  norm.weight = parts_.post_attention_norm.const_data_ptr();
  norm.sum = saved_.sum.mutable_data_ptr();
  norm.output = normalized.mutable_data_ptr();
  norm.inverse_rms = saved_.inverse_rms.mutable_data_ptr<float>();
  CheckCuda(cuda.rms_norm(norm, cuda.current_stream()));
  saved_.mlp_input = MakeFp8Layouts(normalized, gate_up_.InputLayouts(tokens));
  normalized = at::Tensor();
  saved_.gate_up = gate_up_.Forward(saved_.mlp_input);
  saved_.mlp_hidden = GatedHidden();
  return down_.Forward(saved_.mlp_hidden).add_(saved_.sum).view(hidden.sizes());
}

Fp8Layouts FusedPass::GatedHidden() const {
  const CudaApi& cuda = CudaKernels();
  const at::Tensor& gate_up = saved_.gate_up;
  const HiddenDtype dtype = HiddenDtypeOf(gate_up.scalar_type());
  const int64_t width = gate_up.size(1) / 2;
  const Fp8Wanted wanted = down_.InputLayouts(gate_up.size(0));
  if (wanted.rows || wanted.columns) {
    return MakeFp8Layouts({.source = Fp8Source::kGated,
                           .gate_up = gate_up.const_data_ptr(),
                           .rows = gate_up.size(0),
                           .columns = width,
                           .dtype = dtype},
                          wanted, gate_up);
  }
  Fp8Layouts hidden = {.wide = at::empty({gate_up.size(0), width}, gate_up.options())};
  CheckCuda(cuda.gated({.gate_up = gate_up.const_data_ptr(),
                        .hidden = hidden.wide.mutable_data_ptr(),
                        .rows = gate_up.size(0),
                        .width = width,
                        .dtype = dtype},
                       cuda.current_stream()));
  return hidden;
}

Fp8Layouts FusedPass::GatedGradient(const at::Tensor& hidden_gradient) {
  const CudaApi& cuda = CudaKernels();
  const at::Tensor gate_up = std::exchange(saved_.gate_up, at::Tensor());
  const HiddenDtype dtype = HiddenDtypeOf(gate_up.scalar_type());
  const Fp8Wanted wanted = gate_up_.GradientLayouts(gate_up.size(0), /*of_input=*/true);
  if (wanted.rows || wanted.columns) {
    return MakeFp8Layouts({.source = Fp8Source::kGatedBackward,
                           .gate_up = gate_up.const_data_ptr(),
                           .hidden_gradient = hidden_gradient.const_data_ptr(),
                           .rows = gate_up.size(0),
                           .columns = gate_up.size(1),
                           .dtype = dtype},
                          wanted, gate_up);
  }
  CheckCuda(cuda.gated_backward({.gate_up = gate_up.const_data_ptr(),
                                 .hidden_gradient = hidden_gradient.const_data_ptr(),
                                 .gate_up_gradient = gate_up.mutable_data_ptr(),
                                 .rows = hidden_gradient.size(0),
                                 .width = hidden_gradient.size(1),
                                 .dtype = dtype},
                                cuda.current_stream()));
  return {.wide = gate_up};
}

void FusedPass::Rotate(const at::Tensor& rows, bool inverse) const {
  const CudaApi& cuda = CudaKernels();
  const auto heads = [&](int64_t first) {
    const at::Tensor view = rows.narrow(1, first * parts_.head_dim, parts_.head_dim);
    return HeadSpans{view.const_data_ptr(), saved_.length * rows.size(1), rows.size(1),
                     parts_.head_dim};
  };
  const int64_t keys = parts_.num_heads;
  CheckCuda(cuda.rotary({.query = heads(0),
                         .key = heads(keys),
                         .value = heads(keys + parts_.num_key_value_heads),
                         .cos = rotary_.cos.const_data_ptr(),
                         .sin = rotary_.sin.const_data_ptr(),
                         .output = rows.mutable_data_ptr(),
                         .batch = saved_.batch,
                         .length = saved_.length,
                         .heads = parts_.num_heads,
                         .key_heads = parts_.num_key_value_heads,
                         .head_dim = parts_.head_dim,
                         .inverse = inverse,
                         .dtype = HiddenDtypeOf(rows.scalar_type())},
                        cuda.current_stream()));
}

void FusedPass::Backward(const at::Tensor& output_gradient, const GradientSink& sink) {
  const CudaApi& cuda = CudaKernels();
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
      sink(places_.down, down_.WeightGradient(of_output, saved_.mlp_hidden));
    }
    const Fp8Layouts of_gate_up = GatedGradient(hidden_gradient);
    hidden_gradient = at::Tensor();
    mlp_gradient = gate_up_.InputGradient(of_gate_up);
    sink(places_.gate_up, gate_up_.WeightGradient(of_gate_up, saved_.mlp_input));
  }

  const at::Tensor sum_gradient = at::empty_like(gradient);
  CheckCuda(cuda.rms_norm_backward({.gradient = mlp_gradient.const_data_ptr(),
                                    .residual = gradient.const_data_ptr(),
                                    .sum = saved_.sum.const_data_ptr(),
                                    .weight = parts_.post_attention_norm.const_data_ptr(),
                                    .inverse_rms = saved_.inverse_rms.const_data_ptr<float>(),
                                    .output = sum_gradient.mutable_data_ptr(),
                                    .rows = tokens,
                                    .width = gradient.size(1),
                                    .dtype = HiddenDtypeOf(gradient.scalar_type())},
                                   cuda.current_stream()));
  const Fp8Layouts of_sum =
      MakeFp8Layouts(sum_gradient, output_.GradientLayouts(tokens, /*of_input=*/true));
  const at::Tensor attended_gradient = output_.InputGradient(of_sum);
  sink(places_.output, output_.WeightGradient(of_sum, saved_.attended));
  const at::Tensor rows_gradient = saved_.attention.Backward(attended_gradient);
  Rotate(rows_gradient, /*inverse=*/true);
  const Fp8Layouts of_rows =
      MakeFp8Layouts(rows_gradient, query_key_value_.GradientLayouts(tokens, /*of_input=*/false));
  sink(places_.query_key_value, query_key_value_.WeightGradient(of_rows, saved_.attention_input));
  saved_ = {};
}

}  // namespace ptq
