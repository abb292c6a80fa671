// The flow of the Auto-Round proposal for torchao (pytorch/ao issue #533): replace a block by an
// observed one, calibrate, quantize the observed block.
#ifndef PTQ_OBSERVERS_OBSERVED_BLOCK_H_
#define PTQ_OBSERVERS_OBSERVED_BLOCK_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "models/decoder_model.h"
#include "observers/block_inputs.h"
#include "observers/linear_observer.h"

namespace ptq {

// A block in full precision with everything that was seen of it. What a BlockQuantizer takes.
struct ObservedBlock {
  const DecoderBlock* block = nullptr;
  const RotaryTable* rotary = nullptr;
  const BlockInputs* inputs = nullptr;  // nullptr: no calibration data (rtn)
  at::Tensor targets;  // [S, T, D]: the block's outputs on the full-precision chain
  std::vector<LinearStatistics>
      statistics;           // by linear index, from the full-precision block fed by
                            // the quantized chain; empty without calibration data
  int64_t micro_batch = 8;  // samples a forward pass
};

// Holds the calibration samples' hidden states in front of the next block, and advances them.
class BlockInputObserver {
 public:
  // The inputs of the first block: the embedding of `ids` [S, T].
  static absl::StatusOr<std::unique_ptr<BlockInputObserver>> Create(const DecoderModel& model,
                                                                    const at::Tensor& ids,
                                                                    int64_t micro_batch);

  // Two passes over the samples (one while the chains are equal): targets on the full-precision
  // chain, statistics on the quantized one. The result borrows from `block` and from this observer
  // until Advance.
  absl::StatusOr<ObservedBlock> Observe(const DecoderBlock& block);
  // Moves both chains behind the block: full precision to `observed.targets`, quantized through the
  // block with `quantized_weights` (by linear index, rounded to the compute dtype; undefined: the
  // block's own weight), into the memory that the quantized chain had. Of `observed` it needs the
  // block and the targets. After an error the chains are of no use.
  absl::Status Advance(const ObservedBlock& observed,
                       const std::vector<at::Tensor>& quantized_weights);
  const BlockInputs& inputs() const { return inputs_; }
  const RotaryTable& rotary() const { return rotary_; }

 private:
  BlockInputObserver() = default;
  bool ChainsAreEqual() const { return inputs_.quantized.is_same(inputs_.full_precision); }

  BlockInputs inputs_;
  RotaryTable rotary_;
  int64_t micro_batch_ = 8;
};

}  // namespace ptq

#endif  // PTQ_OBSERVERS_OBSERVED_BLOCK_H_
