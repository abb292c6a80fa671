// Statistics of the inputs of each linear layer of a block: Hessians (GPTQ, output errors) and
// importance (opt-RTN).
#ifndef PTQ_OBSERVERS_LINEAR_OBSERVER_H_
#define PTQ_OBSERVERS_LINEAR_OBSERVER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "models/decoder_block.h"

namespace ptq {

// Of one linear layer, X [n, K] being its inputs over all tokens seen.
struct LinearStatistics {
  at::Tensor hessian;     // XᵀX, [K, K] float32; layers that share an input share the tensor
  at::Tensor importance;  // its diagonal: per-column sums of squares, [K] float32
  int64_t tokens = 0;     // n
};

// Collects while a block runs. Layers fed by one and the same tensor (q, k, v; gate, up) are summed
// once. Not thread-safe.
class LinearObserver {
 public:
  explicit LinearObserver(const DecoderBlock& block);

  // A LinearFunction that records the input and applies the block's own weight. Valid as long as
  // the observer and the block.
  LinearFunction Observe();
  // Records `input` [..., K] of linear `index` alone. Equal calls in equal order give equal bits.
  // Throws c10::Error if layers that shared an input before no longer do.
  void Record(size_t index, const at::Tensor& input);
  // By linear index; layers that saw no token have tokens == 0 and undefined tensors. The Hessians
  // are exactly symmetric. Leaves the observer empty.
  std::vector<LinearStatistics> Finish();

 private:
  const DecoderBlock& block_;
  std::vector<LinearStatistics> statistics_;
  // Linear i is summed in the Hessian of linear leaders_[i] (itself, or the first one that saw the
  // same tensor); -1: it saw nothing yet.
  std::vector<int64_t> leaders_;
  at::Tensor last_input_;     // the tensor that the previous linear saw (held, so that its address
  int64_t last_leader_ = -1;  // isn't reused), and where it was summed
};

// mean((X W - X Ŵ)²) over tokens and outputs, from the Hessian: tr(ΔW H ΔWᵀ) / (n N). weight and
// quantized [N, K], on the Hessian's device; statistics.tokens > 0. Products in float32, the sum in
// float64.
double OutputMse(const LinearStatistics& statistics, const at::Tensor& weight,
                 const at::Tensor& quantized);
// mean((X W)²), the denominator of relative_error.
double OutputMeanSquare(const LinearStatistics& statistics, const at::Tensor& weight);

}  // namespace ptq

#endif  // PTQ_OBSERVERS_LINEAR_OBSERVER_H_
