// What other weights do to the outputs of a block's linear layers: the errors of a report.
#ifndef PTQ_OBSERVERS_OUTPUT_ERROR_H_
#define PTQ_OBSERVERS_OUTPUT_ERROR_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "observers/observed_block.h"

namespace ptq {

// How many of `samples` samples of `length` tokens errors are measured on: what makes about 4096
// tokens, at least one. The relative deviation of a mean of squares over n tokens is
// sqrt((kurtosis - 1) / n): 2 % for Gaussian outputs, and ratios between two weights on the same
// tokens are closer still.
int64_t ErrorSamples(int64_t samples, int64_t length);

// Those samples, evenly spread: [S', T, D] of [S, T, D].
at::Tensor SpreadSamples(const at::Tensor& inputs);
// Sum of squares of y [..., N], one float64 on its device. Norms of rows need no wide copy of y.
at::Tensor SumOfSquares(const at::Tensor& y);

// Of one linear layer, X [n, K] being its inputs.
struct OutputError {
  int64_t tokens = 0;       // n; 0: the block did not use the layer
  double mean_square = 0;   // mean((X Wᵀ)²) over tokens and outputs, without the bias
  std::vector<double> mse;  // mean((X (W - Ŵ)ᵀ)²), one a candidate
};

// Weights Ŵ [N, K] in place of that of linear `index`; none: nothing is measured there.
using CandidateWeights = std::function<std::vector<at::Tensor>(size_t index)>;

// One pass of the full-precision block over ErrorSamples evenly spread samples of the quantized
// chain. Whole samples, because a text's first tokens have by far the largest activations, and a
// stride over tokens would take too many of them or none.
//
// W - Ŵ is taken in float32 and rounded to the compute dtype, products have float32 sums, squares
// are summed in float32 by token and in float64 over tokens. `candidates` is called once a layer,
// when the pass has come to it. The device is waited for once, at the end. By linear index; equal
// calls give equal bits. `observed.inputs` is not nullptr.
absl::StatusOr<std::vector<OutputError>> MeasureOutputErrors(const ObservedBlock& observed,
                                                             const CandidateWeights& candidates);

}  // namespace ptq

#endif  // PTQ_OBSERVERS_OUTPUT_ERROR_H_
