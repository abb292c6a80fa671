// What an error in a block's output costs the whole model: the Fisher information of the model's
// next-token distribution with respect to the outputs of each block.
#ifndef PTQ_OBSERVERS_FISHER_OBSERVER_H_
#define PTQ_OBSERVERS_FISHER_OBSERVER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "common/cancellation.h"
#include "models/block_loader.h"

namespace ptq {

struct FisherOptions {
  int64_t micro_batch = 8;  // samples a pass through a block
  uint64_t seed = 42;       // of the sampled labels
  // Where outputs of blocks are kept during the pass: so many bytes on the device, the rest in this
  // folder (hidden_store.h).
  int64_t device_bytes = int64_t{1} << 30;
  std::string scratch_folder;
};

// One forward and one backward pass of the full-precision model over a few samples, block by block,
// as `loader` gives them; the outputs of all blocks are kept in between.
//
// For every block, F = mean over tokens of rms(y)² g gᵀ, y [D] being the block's output at a token
// and g = d CE / d y, CE the cross entropy summed over all positions against labels that are
// sampled from the model's own distribution. (With the true labels it would be the empirical
// Fisher, which is biased by what the model gets wrong.)
class FisherObserver {
 public:
  // The loader's model computes in the dtype of the pass: float16's range is too small for it.
  // Borrows it.
  FisherObserver(BlockLoader& loader, const FisherOptions& options)
      : loader_(loader), model_(loader.model()), options_(options) {}

  // `embedding` [S, T, D]: the model's, of S samples, in its dtype, on its device or in host
  // memory. Calls `consume(block, F)` from the last block to the first, F [D, D] float32,
  // symmetric, on the device; `progress` (may be empty) gets the finished fraction. Equal calls
  // give equal bits. kCancelled; kResourceExhausted; kUnimplemented where a block cannot be
  // differentiated; an error of `consume`.
  absl::Status Observe(const at::Tensor& embedding, const CancellationToken& cancel,
                       const std::function<void(double)>& progress,
                       const std::function<absl::Status(int64_t, const at::Tensor&)>& consume);

 private:
  BlockLoader& loader_;
  const DecoderModel& model_;
  FisherOptions options_;
};

}  // namespace ptq

#endif  // PTQ_OBSERVERS_FISHER_OBSERVER_H_
