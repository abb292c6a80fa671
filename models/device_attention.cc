#include "models/device_attention.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "algorithms/cuda/device_kernels.h"

namespace ptq {
namespace {

using Shape = DeviceAttention::Shape;

// Rows of heads as [batch, heads, length, head_dim].
at::Tensor Heads(const at::Tensor& rows, const Shape& shape) {
  return rows.unflatten(1, {-1, shape.head_dim})
      .unflatten(0, {shape.batch, shape.length})
      .transpose(1, 2);
}

// Heads of samples from `begin` on.
HeadSpans SpansOf(const at::Tensor& rows, const Shape& shape, int64_t begin) {
  const int64_t width = rows.stride(0);
  return {rows.narrow(0, begin * shape.length, shape.length).const_data_ptr(), shape.length * width,
          width, shape.head_dim};
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

PackedHeads::PackedHeads(const at::Tensor& rows, int64_t heads, int64_t key_heads, int64_t head_dim)
    : query(rows.narrow(1, 0, heads * head_dim)),
      key(rows.narrow(1, heads * head_dim, key_heads * head_dim)),
      value(rows.narrow(1, (heads + key_heads) * head_dim, key_heads * head_dim)),
      query_and_key(rows.narrow(1, 0, (heads + key_heads) * head_dim)) {}

at::Tensor DeviceAttention::Forward(const at::Tensor& query, const at::Tensor& key,
                                    const at::Tensor& value, const Shape& shape) {
  *this = {};
  shape_ = shape;
  query_ = query;
  key_ = key;
  value_ = value;
  output_ = at::empty(query.sizes(), query.options());
  log_sum_exp_ =
      at::empty({shape.batch, shape.heads, shape.length}, query.options().dtype(at::kFloat));
  AttentionSpans spans = Spans(0, shape.batch);
  const int64_t bytes = CudaKernels().attention_workspace(spans, AttentionDirection::kForward);
  if (bytes >= 0) {
    Run(spans, AttentionDirection::kForward, bytes, query);
    return output_;
  }
  auto attention = at::_scaled_dot_product_flash_attention(Heads(query, shape), Heads(key, shape),
                                                           Heads(value, shape), /*dropout_p=*/0.0,
                                                           /*is_causal=*/true);
  output_ = std::get<0>(attention).transpose(1, 2).reshape(output_.sizes());
  log_sum_exp_ = std::get<1>(attention);
  philox_seed_ = std::get<6>(attention);
  philox_offset_ = std::get<7>(attention);
  return output_;
}

AttentionSpans DeviceAttention::Spans(int64_t begin, int64_t count) const {
  return {.query = SpansOf(query_, shape_, begin),
          .key = SpansOf(key_, shape_, begin),
          .value = SpansOf(value_, shape_, begin),
          .output = SpansOf(output_, shape_, begin),
          .log_sum_exp = log_sum_exp_.narrow(0, begin, count).mutable_data_ptr<float>(),
          .batch = count,
          .length = shape_.length,
          .heads = shape_.heads,
          .key_heads = shape_.key_heads,
          .head_dim = shape_.head_dim,
          .dtype = HiddenDtypeOf(query_.scalar_type())};
}

at::Tensor DeviceAttention::Backward(const at::Tensor& output_gradient) const {
  at::Tensor gradient = at::empty(
      {query_.size(0), (shape_.heads + 2 * shape_.key_heads) * shape_.head_dim}, query_.options());
  const PackedHeads gradients(gradient, shape_.heads, shape_.key_heads, shape_.head_dim);
  if (!philox_seed_.defined()) {
    const auto spans_of = [&](int64_t begin, int64_t count) {
      AttentionSpans spans = Spans(begin, count);
      spans.output_gradient = SpansOf(output_gradient, shape_, begin);
      spans.query_gradient = SpansOf(gradients.query, shape_, begin);
      spans.key_gradient = SpansOf(gradients.key, shape_, begin);
      spans.value_gradient = SpansOf(gradients.value, shape_, begin);
      return spans;
    };
    const auto workspace_of = [&](int64_t count) {
      return CudaKernels().attention_workspace(spans_of(0, count), AttentionDirection::kBackward);
    };
    // The deterministic kernel takes workspace for each sample: so many go at once as fit.
    int64_t step = shape_.batch;
    while (step > 1 && workspace_of(step) > shape_.workspace_bytes) step = (step + 1) / 2;
    if (workspace_of(step) >= 0) {
      for (int64_t begin = 0; begin < shape_.batch; begin += step) {
        const int64_t count = std::min(step, shape_.batch - begin);
        AttentionSpans spans = spans_of(begin, count);
        Run(spans, AttentionDirection::kBackward, workspace_of(count), query_);
      }
      return gradient;
    }
  }
  // cuDNN has no dropout state: any seed will do without dropout.
  const at::Tensor none = at::zeros({}, query_.options().dtype(at::kLong));
  const auto [query, key, value] = at::_scaled_dot_product_flash_attention_backward(
      Heads(output_gradient, shape_), Heads(query_, shape_), Heads(key_, shape_),
      Heads(value_, shape_), Heads(output_, shape_), log_sum_exp_, /*cum_seq_q=*/at::Tensor(),
      /*cum_seq_k=*/at::Tensor(), shape_.length, shape_.length, /*dropout_p=*/0.0,
      /*is_causal=*/true, philox_seed_.defined() ? philox_seed_ : none,
      philox_offset_.defined() ? philox_offset_ : none);
  Heads(gradients.query, shape_).copy_(query);
  Heads(gradients.key, shape_).copy_(key);
  Heads(gradients.value, shape_).copy_(value);
  return gradient;
}

}  // namespace ptq
