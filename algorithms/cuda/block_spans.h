// What the kernels between a decoder block's matrix products read and write: raw spans on a CUDA
// device, rows contiguous unless strides are given. C++17, no torch.
//
// They follow models/norm.h, models/rotary.h and models/transformer_block.h with fewer
// roundings: float32 inside, one rounding of each output, but the two of RmsNorm. Widths are
// multiples of kHiddenPack, pointers and strides of 16 bytes.
#ifndef PTQ_ALGORITHMS_CUDA_BLOCK_SPANS_H_
#define PTQ_ALGORITHMS_CUDA_BLOCK_SPANS_H_

#include <cstdint>

#include "algorithms/cuda/hidden_dtype.h"

namespace ptq {

// The widest row of a norm, which its kernel holds in registers.
constexpr int64_t kWidestRow = 16384;

// Samples of step *step: output[i] = inputs[order[*step · batch + first + i]], `bytes` each.
struct GatherSpans {
  const void* inputs = nullptr;    // [samples, bytes]
  const int64_t* order = nullptr;  // [steps, batch]
  const int64_t* step = nullptr;   // [1]
  void* output = nullptr;          // [count, bytes]
  int64_t batch = 0;
  int64_t first = 0;
  int64_t count = 0;
  int64_t bytes = 0;  // a multiple of 16
};

// sum = input + branch (or input itself without a branch); output = RmsNorm(sum).
struct RmsNormSpans {
  const void* input = nullptr;   // [rows, width]
  const void* branch = nullptr;  // the same; may be none, with `sum` none too
  const void* weight = nullptr;  // [width]
  void* sum = nullptr;
  void* output = nullptr;
  float* inverse_rms = nullptr;  // [rows]; may be none
  int64_t rows = 0;
  int64_t width = 0;
  float epsilon = 0;
  HiddenDtype dtype = HiddenDtype::kBFloat16;  // not float32, here and below
};

// output = residual + d RmsNorm(sum) · gradient.
struct RmsNormBackwardSpans {
  const void* gradient = nullptr;      // [rows, width]: of the norm's output
  const void* residual = nullptr;      // the same: gradient that reaches the sum directly
  const void* sum = nullptr;           // RmsNormSpans'
  const void* weight = nullptr;        // [width]
  const float* inverse_rms = nullptr;  // [rows]: RmsNormSpans'
  void* output = nullptr;              // may be `gradient` or `residual`
  int64_t rows = 0;
  int64_t width = 0;
  HiddenDtype dtype = HiddenDtype::kBFloat16;
};

// Rotates the heads of each token by its position, in place: the first `heads` heads of rows that
// may hold more.
struct RotarySpans {
  void* rows = nullptr;       // [batch · length, heads · head_dim]
  int64_t row_stride = 0;     // elements
  const void* cos = nullptr;  // [length, head_dim], both halves alike
  const void* sin = nullptr;
  int64_t batch = 0;
  int64_t length = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;  // a multiple of 16
  bool inverse = false;  // back: what gradients need
  HiddenDtype dtype = HiddenDtype::kBFloat16;
};

// Forward: hidden = silu(gate) · up. Backward: the gradients of both from hidden's.
struct GatedSpans {
  const void* gate = nullptr;  // [rows, width]
  const void* up = nullptr;    // the same
  int64_t stride = 0;          // elements from row to row, of gate, up and their gradients
  void* hidden = nullptr;      // [rows, width]: forward's output
  const void* hidden_gradient = nullptr;  // [rows, width]
  void* gate_gradient = nullptr;          // may be `gate`
  void* up_gradient = nullptr;            // may be `up`
  int64_t rows = 0;
  int64_t width = 0;
  HiddenDtype dtype = HiddenDtype::kBFloat16;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_CUDA_BLOCK_SPANS_H_
