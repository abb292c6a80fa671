// Causal attention and its gradient on a CUDA device, by cuDNN's deterministic kernels. C++17, no
// torch.
#ifndef PTQ_ALGORITHMS_CUDA_ATTENTION_SPANS_H_
#define PTQ_ALGORITHMS_CUDA_ATTENTION_SPANS_H_

#include <cstdint>

#include "algorithms/cuda/hidden_dtype.h"

namespace ptq {

// Heads of one kind, head_dim values each: element strides.
struct HeadSpans {
  const void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
};

// Heads of [batch, length, heads or key_heads, head_dim] by their strides, values scaled by
// 1 / sqrt(head_dim). Forward reads query, key, value and writes output and log_sum_exp; backward
// reads those and output_gradient and writes the three gradients.
struct AttentionSpans {
  HeadSpans query{};
  HeadSpans key{};
  HeadSpans value{};
  HeadSpans output{};
  float* log_sum_exp = nullptr;  // [batch, heads, length]
  HeadSpans output_gradient{};
  HeadSpans query_gradient{};
  HeadSpans key_gradient{};
  HeadSpans value_gradient{};
  void* workspace = nullptr;
  int64_t batch = 0;
  int64_t length = 0;
  int64_t heads = 0;
  int64_t key_heads = 0;
  int64_t head_dim = 0;
  HiddenDtype dtype = HiddenDtype::kBFloat16;
};

enum class AttentionDirection { kForward, kBackward };

// Bytes of workspace that the call needs; -1 where cuDNN has no such kernel on the device. Plans
// are kept by shape and strides: the first call for one takes milliseconds to seconds.
int64_t AttentionWorkspace(const AttentionSpans& spans, AttentionDirection direction);
// Queues the work; false on an error of cuDNN.
bool RunAttention(const AttentionSpans& spans, AttentionDirection direction, void* stream);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_CUDA_ATTENTION_SPANS_H_
