// One batch through a block whose weights are being tuned, and the gradients of those weights.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_BLOCK_PASS_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_BLOCK_PASS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "algorithms/auto_round/fp8.h"
#include "algorithms/auto_round/tunable_weight.h"

namespace ptq {

// Tuned linears that see one and the same input (q, k, v; gate, up) are one product, their weights
// row below row in one tensor.
struct SharedLinear {
  std::vector<size_t> members;  // linear indices
  std::vector<int64_t> rows;    // out_features of each
  int64_t in_features = 0;      // K
  // What the parameters decode to, [sum of rows, K]: in full or as codes for FP8 products.
  at::Tensor weight;
  Fp8Operand codes;
  at::Tensor bias;  // [sum of rows], or undefined

  int64_t out_features() const { return std::accumulate(rows.begin(), rows.end(), int64_t{0}); }

  // The rows of a member in `tensor`, which has those of all.
  at::Tensor RowsOf(size_t position, const at::Tensor& tensor) const {
    const int64_t begin = std::accumulate(
        rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(position), int64_t{0});
    return tensor.narrow(0, begin, rows[position]);
  }
  // Where a member is decoded to.
  DecodedWeight OutputOf(size_t position) const {
    if (!codes.defined()) return {.weight = RowsOf(position, weight.detach())};
    return {.codes = RowsOf(position, codes.values), .scale = RowsOf(position, codes.scale)};
  }
};

// Reads the weights of SharedLinears that its maker was given, as they are at each call. Methods
// throw c10::Error and only queue work on CUDA.
class BlockPass {
 public:
  virtual ~BlockPass() = default;
  // Which way batches of so many tokens go, for reports: "fused fp8", "fused", "autograd".
  virtual std::string Path(int64_t tokens) const = 0;
  // hidden [b, T, D] -> the block's output, [b, T, D] contiguous. Keeps what Backward needs.
  virtual at::Tensor Forward(const at::Tensor& hidden) = 0;
  // From dL / d output of the last Forward, only once for a Forward. Without a sink the weights'
  // gradients are kept, and the next call adds to them: micro-batches of one batch. With one, calls
  // sink(i, their sum for the weight of SharedLinear i) (contiguous, zero where no token reached
  // it) once for each, and forgets it; the sink may change that weight.
  using GradientSink = std::function<void(size_t, const at::Tensor&)>;
  virtual void Backward(const at::Tensor& output_gradient, const GradientSink& sink) = 0;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_BLOCK_PASS_H_
