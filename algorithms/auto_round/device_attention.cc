#include "algorithms/auto_round/device_attention.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "algorithms/auto_round/device_kernels.h"
#include "algorithms/auto_round/hidden_dtype.h"

namespace ptq {
namespace {

using Shape = DeviceAttention::Shape;

// The deterministic backward pass takes workspace for each sample: so many go at once as fit.
constexpr int64_t kWorkspaceBytes = int64_t{5} << 28;

// Heads [first, first + count) of `rows`, [batch, count, length, head_dim].
at::Tensor Heads(const at::Tensor& rows, const Shape& shape, int64_t first, int64_t count) {
  return rows.narrow(1, first * shape.head_dim, count * shape.head_dim)
      .view({shape.batch, shape.length, count, shape.head_dim})
      .transpose(1, 2);
}

// Of samples [begin, begin + count).
AttentionSpans SpansOf(const Shape& shape, int64_t begin, int64_t count, const at::Tensor& rows,
                       const at::Tensor& output, const at::Tensor& log_sum_exp) {
  const auto heads = [&](const at::Tensor& tensor, int64_t first) {
    const at::Tensor view = tensor.narrow(0, begin * shape.length, count * shape.length)
                                .narrow(1, first * shape.head_dim, shape.head_dim);
    const int64_t width = tensor.size(1);
    return HeadSpans{view.const_data_ptr(), shape.length * width, width, shape.head_dim};
  };
  return {.query = heads(rows, 0),
          .key = heads(rows, shape.heads),
          .value = heads(rows, shape.heads + shape.key_heads),
          .output = heads(output, 0),
          .log_sum_exp = log_sum_exp.narrow(0, begin, count).mutable_data_ptr<float>(),
          .batch = count,
          .length = shape.length,
          .heads = shape.heads,
          .key_heads = shape.key_heads,
          .head_dim = shape.head_dim,
          .dtype = HiddenDtypeOf(rows.scalar_type())};
}

void Run(AttentionSpans& spans, AttentionDirection direction, int64_t workspace_bytes,
         const at::Tensor& like) {
  const CudaApi& cuda = CudaKernels();
  const at::Tensor workspace =
      at::empty({std::max<int64_t>(1, workspace_bytes)}, like.options().dtype(at::kByte));
  spans.workspace = workspace.mutable_data_ptr();
  TORCH_CHECK(cuda.run_attention(spans, direction, cuda.current_stream()),
              "cuDNN's attention failed");
}

}  // namespace

at::Tensor DeviceAttention::Forward(const at::Tensor& rows, const Shape& shape) {
  *this = {};
  shape_ = shape;
  rows_ = rows;
  output_ = at::empty({rows.size(0), shape.heads * shape.head_dim}, rows.options());
  log_sum_exp_ =
      at::empty({shape.batch, shape.heads, shape.length}, rows.options().dtype(at::kFloat));
  AttentionSpans spans = SpansOf(shape, 0, shape.batch, rows, output_, log_sum_exp_);
  const int64_t bytes = CudaKernels().attention_workspace(spans, AttentionDirection::kForward);
  if (bytes >= 0) {
    Run(spans, AttentionDirection::kForward, bytes, rows);
    return output_;
  }
  auto attention = at::_scaled_dot_product_flash_attention(
      Heads(rows, shape, 0, shape.heads), Heads(rows, shape, shape.heads, shape.key_heads),
      Heads(rows, shape, shape.heads + shape.key_heads, shape.key_heads), /*dropout_p=*/0.0,
      /*is_causal=*/true);
  output_ = std::get<0>(attention).transpose(1, 2).reshape(output_.sizes());
  log_sum_exp_ = std::get<1>(attention);
  philox_seed_ = std::get<6>(attention);
  philox_offset_ = std::get<7>(attention);
  return output_;
}

at::Tensor DeviceAttention::Backward(const at::Tensor& output_gradient) const {
  const at::Tensor gradient = at::empty_like(rows_);
  const int64_t keys = shape_.heads;
  const int64_t values = shape_.heads + shape_.key_heads;
  if (!philox_seed_.defined()) {
    const auto spans_of = [&](int64_t begin, int64_t count) {
      AttentionSpans spans = SpansOf(shape_, begin, count, rows_, output_, log_sum_exp_);
      spans.output_gradient =
          SpansOf(shape_, begin, count, rows_, output_gradient, log_sum_exp_).output;
      const AttentionSpans gradients =
          SpansOf(shape_, begin, count, gradient, output_, log_sum_exp_);
      spans.query_gradient = gradients.query;
      spans.key_gradient = gradients.key;
      spans.value_gradient = gradients.value;
      return spans;
    };
    const auto workspace_of = [&](int64_t count) {
      return CudaKernels().attention_workspace(spans_of(0, count), AttentionDirection::kBackward);
    };
    int64_t step = shape_.batch;
    while (step > 1 && workspace_of(step) > kWorkspaceBytes) step = (step + 1) / 2;
    if (workspace_of(step) >= 0) {
      for (int64_t begin = 0; begin < shape_.batch; begin += step) {
        const int64_t count = std::min(step, shape_.batch - begin);
        AttentionSpans spans = spans_of(begin, count);
        Run(spans, AttentionDirection::kBackward, workspace_of(count), rows_);
      }
      return gradient;
    }
  }
  // cuDNN has no dropout state: any seed will do without dropout.
  const at::Tensor none = at::zeros({}, rows_.options().dtype(at::kLong));
  const auto heads_of = [&](const at::Tensor& tensor, int64_t first, int64_t count) {
    return Heads(tensor, shape_, first, count);
  };
  const auto [query, key, value] = at::_scaled_dot_product_flash_attention_backward(
      heads_of(output_gradient, 0, shape_.heads), heads_of(rows_, 0, shape_.heads),
      heads_of(rows_, keys, shape_.key_heads), heads_of(rows_, values, shape_.key_heads),
      heads_of(output_, 0, shape_.heads), log_sum_exp_, /*cum_seq_q=*/at::Tensor(),
      /*cum_seq_k=*/at::Tensor(), shape_.length, shape_.length, /*dropout_p=*/0.0,
      /*is_causal=*/true, philox_seed_.defined() ? philox_seed_ : none,
      philox_offset_.defined() ? philox_offset_ : none);
  heads_of(gradient, 0, shape_.heads).copy_(query);
  heads_of(gradient, keys, shape_.key_heads).copy_(key);
  heads_of(gradient, values, shape_.key_heads).copy_(value);
  return gradient;
}

}  // namespace ptq
