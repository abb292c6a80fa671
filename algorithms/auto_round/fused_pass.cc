#include "algorithms/auto_round/fused_pass.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "algorithms/auto_round/device_kernels.h"
#include "algorithms/auto_round/hidden_dtype.h"

namespace ptq {
namespace {

// What the kernels move at once (algorithms/cuda/packs.cuh), and the widest row that they hold.
constexpr int64_t kPack = 8;
constexpr int64_t kWidestRow = 16384;
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
                                             const std::vector<SharedLinear>& shared) {
  const std::optional<GatedBlockParts> parts = block.gated_parts();
  if (!parts || shared.empty() || !shared.front().weight.is_cuda()) return nullptr;
  const at::ScalarType dtype = shared.front().weight.scalar_type();
  const int64_t intermediate = block.linears()[parts->down].weight.size(1);
  const int64_t width = parts->input_norm.size(0);
  if ((dtype != at::kBFloat16 && dtype != at::kHalf) || width % kPack != 0 || width > kWidestRow ||
      intermediate % kPack != 0 || parts->head_dim % (2 * kPack) != 0 ||
      parts->head_dim > kWidestHead) {
    return nullptr;
  }
  const auto query_key_value = FindShared(shared, {parts->query, parts->key, parts->value});
  const auto output = FindShared(shared, {parts->output});
  const auto gate_up = FindShared(shared, {parts->gate, parts->up});
  const auto down = FindShared(shared, {parts->down});
  if (!query_key_value || !output || !gate_up || !down) return nullptr;
  return std::unique_ptr<FusedPass>(
      new FusedPass(*parts, rotary, shared, {*query_key_value, *output, *gate_up, *down}));
}

at::Tensor FusedPass::Product(const at::Tensor& input, size_t shared) const {
  const at::Tensor& bias = shared_[shared].bias;
  return at::linear(input, shared_[shared].weight,
                    bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt);
}

at::Tensor FusedPass::Forward(const at::Tensor& hidden) {
  saved_ = {};
  saved_.batch = hidden.size(0);
  saved_.length = hidden.size(1);
  const at::Tensor rows = hidden.contiguous().flatten(0, 1);
  const HiddenDtype dtype = HiddenDtypeOf(rows.scalar_type());
  const CudaApi& cuda = CudaKernels();

  saved_.attention_input = at::empty_like(rows);
  RmsNormSpans norm = {.input = rows.const_data_ptr(),
                       .weight = parts_.input_norm.const_data_ptr(),
                       .output = saved_.attention_input.mutable_data_ptr(),
                       .rows = rows.size(0),
                       .width = rows.size(1),
                       .epsilon = static_cast<float>(parts_.rms_norm_eps),
                       .dtype = dtype};
  CheckCuda(cuda.rms_norm(norm, cuda.current_stream()));
  saved_.query_key_value = Product(saved_.attention_input, products_.query_key_value);
  Rotate(saved_.query_key_value, /*inverse=*/false);
  saved_.attended =
      saved_.attention.Forward(saved_.query_key_value, {.batch = saved_.batch,
                                                        .length = saved_.length,
                                                        .heads = parts_.num_heads,
                                                        .key_heads = parts_.num_key_value_heads,
                                                        .head_dim = parts_.head_dim});
  const at::Tensor branch = Product(saved_.attended, products_.output);

  saved_.sum = at::empty_like(rows);
  saved_.mlp_input = at::empty_like(rows);
  saved_.inverse_rms = at::empty({rows.size(0)}, rows.options().dtype(at::kFloat));
  norm.branch = branch.const_data_ptr();
  norm.weight = parts_.post_attention_norm.const_data_ptr();
  norm.sum = saved_.sum.mutable_data_ptr();
  norm.output = saved_.mlp_input.mutable_data_ptr();
  norm.inverse_rms = saved_.inverse_rms.mutable_data_ptr<float>();
  CheckCuda(cuda.rms_norm(norm, cuda.current_stream()));
  saved_.gate_up = Product(saved_.mlp_input, products_.gate_up);
  saved_.mlp_hidden = at::empty({rows.size(0), saved_.gate_up.size(1) / 2}, rows.options());
  CheckCuda(cuda.gated({.gate_up = saved_.gate_up.const_data_ptr(),
                        .hidden = saved_.mlp_hidden.mutable_data_ptr(),
                        .rows = rows.size(0),
                        .width = saved_.mlp_hidden.size(1),
                        .dtype = dtype},
                       cuda.current_stream()));
  return Product(saved_.mlp_hidden, products_.down).add_(saved_.sum).view(hidden.sizes());
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
  // Pieces are released as soon as they are used up.
  Saved& saved = saved_;
  const at::Tensor gradient = output_gradient.flatten(0, 1);
  const HiddenDtype dtype = HiddenDtypeOf(gradient.scalar_type());
  // A weight is read for the last time before the sink sees its gradient.
  const auto finish = [&](size_t shared, const at::Tensor& of_output, at::Tensor& input) {
    sink(shared, at::mm(of_output.t(), input));
    input = at::Tensor();
  };

  at::Tensor hidden_gradient = at::mm(gradient, shared_[products_.down].weight);
  finish(products_.down, gradient, saved.mlp_hidden);
  CheckCuda(cuda.gated_backward({.gate_up = saved.gate_up.const_data_ptr(),
                                 .hidden_gradient = hidden_gradient.const_data_ptr(),
                                 .gate_up_gradient = saved.gate_up.mutable_data_ptr(),
                                 .rows = hidden_gradient.size(0),
                                 .width = hidden_gradient.size(1),
                                 .dtype = dtype},
                                cuda.current_stream()));
  hidden_gradient = at::mm(saved.gate_up, shared_[products_.gate_up].weight);
  finish(products_.gate_up, saved.gate_up, saved.mlp_input);
  saved.gate_up = at::Tensor();

  const at::Tensor sum_gradient = at::empty_like(gradient);
  CheckCuda(cuda.rms_norm_backward({.gradient = hidden_gradient.const_data_ptr(),
                                    .residual = gradient.const_data_ptr(),
                                    .sum = saved.sum.const_data_ptr(),
                                    .weight = parts_.post_attention_norm.const_data_ptr(),
                                    .inverse_rms = saved.inverse_rms.const_data_ptr<float>(),
                                    .output = sum_gradient.mutable_data_ptr(),
                                    .rows = gradient.size(0),
                                    .width = gradient.size(1),
                                    .dtype = dtype},
                                   cuda.current_stream()));
  const at::Tensor attended_gradient = at::mm(sum_gradient, shared_[products_.output].weight);
  finish(products_.output, sum_gradient, saved.attended);
  const at::Tensor rows_gradient = saved.attention.Backward(attended_gradient);
  Rotate(rows_gradient, /*inverse=*/true);
  finish(products_.query_key_value, rows_gradient, saved.attention_input);
  saved_ = {};
}

}  // namespace ptq
