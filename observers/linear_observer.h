// Statistics of the inputs of each linear layer of a block: importance (scale searches) and
// Hessians (GPTQ).
#ifndef PTQ_OBSERVERS_LINEAR_OBSERVER_H_
#define PTQ_OBSERVERS_LINEAR_OBSERVER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "models/decoder_block.h"

namespace ptq {

// Of one linear layer, X [n, K] being its inputs over all tokens seen. Layers that share an input
// share the tensors.
struct LinearStatistics {
  at::Tensor hessian;     // XᵀX, [K, K] float32; undefined unless asked for
  at::Tensor importance;  // per-column sums of squares, [K] float32: the Hessian's diagonal
  int64_t tokens = 0;     // n
};

// Collects while a block runs. Layers fed by one and the same tensor (q, k, v; gate, up) are summed
// once. Not thread-safe.
class LinearObserver {
 public:
  // Hessians take n K² products a layer, importance n K: only GPTQ wants the former.
  explicit LinearObserver(const DecoderBlock& block, bool hessians = false);

  // A LinearFunction that records the input and applies the block's own weight. Valid as long as
  // the observer and the block.
  LinearFunction Observe();
  // Records `input` [..., K] of linear `index` alone. Equal calls in equal order give equal bits.
  // Throws c10::Error if layers that shared an input before no longer do.
  void Record(size_t index, const at::Tensor& input);
  // Whether each linear saw a token.
  bool SawAll() const;
  // By linear index; layers that saw no token have tokens == 0 and undefined tensors. The Hessians
  // are exactly symmetric. Leaves the observer empty.
  std::vector<LinearStatistics> Finish();

 private:
  const DecoderBlock& block_;
  const bool hessians_;
  std::vector<LinearStatistics> statistics_;
  // Linear i is summed in the statistics of linear leaders_[i] (itself, or the first one that saw
  // the same tensor); -1: it saw nothing yet.
  std::vector<int64_t> leaders_;
  at::Tensor last_input_;     // the tensor that the previous linear saw (held, so that its address
  int64_t last_leader_ = -1;  // isn't reused), and where it was summed
};

}  // namespace ptq

#endif  // PTQ_OBSERVERS_LINEAR_OBSERVER_H_
