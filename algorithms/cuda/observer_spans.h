// What observers of blocks compute on a CUDA device in one pass over memory: raw spans, rows
// contiguous. C++17, no torch. Equal calls give equal bits.
#ifndef PTQ_ALGORITHMS_CUDA_OBSERVER_SPANS_H_
#define PTQ_ALGORITHMS_CUDA_OBSERVER_SPANS_H_

#include <cstdint>

#include "algorithms/cuda/hidden_dtype.h"

namespace ptq {

// errors[row] = |values - targets|² / |targets|², the divisor at least 1e-30.
struct RowErrorSpans {
  const void* values = nullptr;   // [rows, width], width a multiple of kHiddenPack
  const void* targets = nullptr;  // the same
  float* errors = nullptr;        // [rows]
  int64_t rows = 0;
  int64_t width = 0;
  HiddenDtype dtype = HiddenDtype::kBFloat16;  // not float32, here and below
};

// Sums of squares of each column over slices of kRowsPerSlice rows, the last one shorter.
constexpr int64_t kRowsPerSlice = 512;
struct ColumnSquareSpans {
  const void* values = nullptr;  // [rows, width], width a multiple of kHiddenPack
  float* sums = nullptr;         // [slices, width]
  int64_t rows = 0;
  int64_t width = 0;
  HiddenDtype dtype = HiddenDtype::kBFloat16;

  int64_t slices() const { return (rows + kRowsPerSlice - 1) / kRowsPerSlice; }
};

// gradient[row] = softmax(logits[row]) - onehot(label), the label drawn from that softmax by the
// noise of observers/sampled_labels.h.
struct SampledGradientSpans {
  const float* logits = nullptr;      // [rows, width]
  const int32_t* row_keys = nullptr;  // [rows]
  void* gradient = nullptr;           // [rows, width]
  int64_t rows = 0;
  int64_t width = 0;
  HiddenDtype dtype = HiddenDtype::kBFloat16;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_CUDA_OBSERVER_SPANS_H_
