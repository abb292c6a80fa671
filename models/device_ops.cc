#include "models/device_ops.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "algorithms/cuda/device_kernels.h"

namespace ptq {
namespace {

constexpr int64_t kWidestHead = 256;  // of flash attention

// Of gate and up, and how their rows lie.
GatedSpans GatedSpansOf(const at::Tensor& gate, const at::Tensor& up) {
  TORCH_CHECK(gate.sizes() == up.sizes() && gate.stride(0) == up.stride(0) && gate.stride(1) == 1 &&
                  up.stride(1) == 1,
              "gate and up lie alike");
  return {.gate = gate.const_data_ptr(),
          .up = up.const_data_ptr(),
          .stride = gate.stride(0),
          .rows = gate.size(0),
          .width = gate.size(1),
          .dtype = HiddenDtypeOf(gate.scalar_type())};
}

}  // namespace

std::optional<GatedBlockParts> PartsForDeviceOps(const DecoderBlock& block, int64_t length) {
  std::optional<GatedBlockParts> parts = block.gated_parts(length);
  if (!parts || !parts->input_norm.is_cuda()) return std::nullopt;
  const at::ScalarType dtype = parts->input_norm.scalar_type();
  const int64_t width = parts->input_norm.size(0);
  const int64_t intermediate = block.linears()[parts->down].weight.size(1);
  if ((dtype != at::kBFloat16 && dtype != at::kHalf) || width % kHiddenPack != 0 ||
      width > kWidestRow || intermediate % kHiddenPack != 0 ||
      parts->head_dim % (2 * kHiddenPack) != 0 || parts->head_dim > kWidestHead) {
    return std::nullopt;
  }
  return parts;
}

NormedSum DeviceNormedSum(const at::Tensor& rows, const at::Tensor& branch,
                          const at::Tensor& weight, double epsilon) {
  const CudaApi& cuda = CudaKernels();
  NormedSum result = {.sum = branch.defined() ? at::empty_like(rows) : rows,
                      .normalized = at::empty_like(rows),
                      .inverse_rms = at::empty({rows.size(0)}, rows.options().dtype(at::kFloat))};
  RmsNormSpans spans = {.input = rows.const_data_ptr(),
                        .weight = weight.const_data_ptr(),
                        .output = result.normalized.mutable_data_ptr(),
                        .inverse_rms = result.inverse_rms.mutable_data_ptr<float>(),
                        .rows = rows.size(0),
                        .width = rows.size(1),
                        .epsilon = static_cast<float>(epsilon),
                        .dtype = HiddenDtypeOf(rows.scalar_type())};
  if (branch.defined()) {
    spans.branch = branch.const_data_ptr();
    spans.sum = result.sum.mutable_data_ptr();
  }
  CheckCuda(cuda.rms_norm(spans, cuda.current_stream()));
  return result;
}

at::Tensor DeviceNormedSumBackward(const NormedSum& forward, const at::Tensor& weight,
                                   const at::Tensor& gradient, const at::Tensor& residual) {
  const CudaApi& cuda = CudaKernels();
  at::Tensor result = at::empty_like(gradient);
  CheckCuda(cuda.rms_norm_backward({.gradient = gradient.const_data_ptr(),
                                    .residual = residual.const_data_ptr(),
                                    .sum = forward.sum.const_data_ptr(),
                                    .weight = weight.const_data_ptr(),
                                    .inverse_rms = forward.inverse_rms.const_data_ptr<float>(),
                                    .output = result.mutable_data_ptr(),
                                    .rows = gradient.size(0),
                                    .width = gradient.size(1),
                                    .dtype = HiddenDtypeOf(gradient.scalar_type())},
                                   cuda.current_stream()));
  return result;
}

void DeviceRotate(const at::Tensor& rows, int64_t head_dim, const RotaryTable& rotary,
                  bool inverse) {
  const CudaApi& cuda = CudaKernels();
  const int64_t length = rotary.cos.size(0);
  CheckCuda(cuda.rotary({.rows = rows.mutable_data_ptr(),
                         .row_stride = rows.stride(0),
                         .cos = rotary.cos.const_data_ptr(),
                         .sin = rotary.sin.const_data_ptr(),
                         .batch = rows.size(0) / length,
                         .length = length,
                         .heads = rows.size(1) / head_dim,
                         .head_dim = head_dim,
                         .inverse = inverse,
                         .dtype = HiddenDtypeOf(rows.scalar_type())},
                        cuda.current_stream()));
}

at::Tensor DeviceGated(const at::Tensor& gate, const at::Tensor& up) {
  const CudaApi& cuda = CudaKernels();
  at::Tensor hidden = at::empty(gate.sizes(), gate.options());
  GatedSpans spans = GatedSpansOf(gate, up);
  spans.hidden = hidden.mutable_data_ptr();
  CheckCuda(cuda.gated(spans, cuda.current_stream()));
  return hidden;
}

void DeviceGatedBackward(const at::Tensor& hidden_gradient, const at::Tensor& gate,
                         const at::Tensor& up) {
  const CudaApi& cuda = CudaKernels();
  GatedSpans spans = GatedSpansOf(gate, up);
  spans.hidden_gradient = hidden_gradient.const_data_ptr();
  spans.gate_gradient = gate.mutable_data_ptr();
  spans.up_gradient = up.mutable_data_ptr();
  CheckCuda(cuda.gated_backward(spans, cuda.current_stream()));
}

}  // namespace ptq
