// The flow of the Auto-Round proposal for torchao (pytorch/ao issue #533): replace a block by an
// observed one, calibrate, quantize the observed block.
#ifndef PTQ_OBSERVERS_OBSERVED_BLOCK_H_
#define PTQ_OBSERVERS_OBSERVED_BLOCK_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
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
  // [S, T, D]: the block's outputs on the full-precision chain; undefined without that chain.
  at::Tensor targets;
  // By linear index, from the full-precision block fed by the quantized chain; importance from
  // about 65536 tokens, or from all where those left a linear (an expert) without any; Hessians
  // from all. Empty where none were asked for, or without calibration
  // data.
  std::vector<LinearStatistics> statistics;
  // By linear index, the calibration tokens that reached it while it was observed: on the chain of
  // the statistics, or where there are none of the targets. An expert may see none. Empty where
  // nothing was observed.
  std::vector<int64_t> tokens;
  int64_t micro_batch = 8;  // samples a forward pass
  // What an error of the output costs the model (fisher_observer.h), and how many tokens it is the
  // mean over. Undefined: not known.
  at::Tensor fisher;  // [D, D] float32, CPU
  int64_t fisher_tokens = 0;
};

// How far a quantized block's outputs are from the full-precision ones on their chains: mean over
// unmasked tokens of |y - y*|² / |y*|².
struct ReconstructionError {
  double calibration = 0;  // on the samples that quantizers see
  double held_out = 0;     // on those that they do not
  int64_t held_out_samples = 0;
};

// What is to be known of the inputs of a block's layers.
enum class InputStatistics {
  kNone,
  kImportance,
  kHessian,  // importance too
};

// Importance says which columns count: more tokens than these hardly change it, and each costs a
// forward pass.
inline constexpr int64_t kImportanceTokens = 65536;

// Runs the block over samples `inputs` [S, T, D], on its device or in host memory, for the
// statistics of its linears alone: Hessians of all samples, importance of evenly spread
// micro-batches, and of the others too if a linear saw no token of those. Throws c10::Error.
std::vector<LinearStatistics> ObserveLinears(const DecoderBlock& block, const at::Tensor& inputs,
                                             const RotaryTable& rotary, int64_t micro_batch,
                                             bool hessians);

struct BlockInputOptions {
  int64_t micro_batch = 8;  // samples a forward pass
  // The last so many samples go through all blocks too, but neither `ObservedBlock` nor `inputs()`
  // show them.
  int64_t held_out = 0;
  InputStatistics statistics = InputStatistics::kImportance;
  // Whether there is a full-precision chain: targets, and errors of the other chain against it.
  // Only tuning looks at them, and the chain costs a pass through every block.
  bool full_precision = true;
  // The model whose embedding the quantized chain begins with; nullptr: the same. Must outlive
  // Create.
  const DecoderModel* quantized = nullptr;
  // Makes the memory of a chain, uninitialized, in host memory (page-locked, or copies are slow).
  // Empty: chains lie on the model's device.
  std::function<at::Tensor(at::IntArrayRef shape, at::ScalarType dtype)> allocate;
};

// Holds the calibration samples' hidden states in front of the next block, and advances them.
class BlockInputObserver {
 public:
  // The inputs of the first block: the embedding of `ids` [S + H, T], H = options.held_out.
  // kInvalidArgument for a micro-batch below 1, or unless 0 <= H < S + H, or for held-out samples
  // without a full-precision chain, on which nobody would measure errors.
  static absl::StatusOr<std::unique_ptr<BlockInputObserver>> Create(
      const DecoderModel& model, const at::Tensor& ids, const BlockInputOptions& options);

  // A pass over the samples for the targets on the full-precision chain, and one on the quantized
  // chain for the statistics, as far as they are asked for (one for both while the chains are
  // equal). The result borrows from `block` and from this observer until Advance.
  //
  // Chains in host memory are saved from a third one: the targets overwrite the full-precision
  // chain once it is another one than the quantized. After an error status the chains are of no
  // use.
  absl::StatusOr<ObservedBlock> Observe(const DecoderBlock& block);
  // Moves both chains behind the block that was observed last: full precision to its targets,
  // quantized through the block with `quantized_weights` (by linear index, rounded to the compute
  // dtype; undefined: the block's own weight), into the memory that the quantized chain had.
  // Returns the error behind the block; 0 without held-out samples. After an error status the
  // chains are of no use.
  absl::StatusOr<ReconstructionError> Advance(const DecoderBlock& block,
                                              const std::vector<at::Tensor>& quantized_weights);
  // The same for a block that needs no observing: its records are there already. The chains get the
  // same bits.
  absl::StatusOr<ReconstructionError> Replay(const DecoderBlock& block,
                                             const std::vector<at::Tensor>& quantized_weights);
  // Samples a forward pass from the next block on.
  void set_micro_batch(int64_t samples) { options_.micro_batch = samples; }
  const BlockInputs& inputs() const { return inputs_; }
  const RotaryTable& rotary() const { return rotary_; }

 private:
  explicit BlockInputObserver(const BlockInputOptions& options) : options_(options) {}
  bool ChainsAreEqual() const { return quantized_.is_same(full_precision_); }
  // The block's outputs on the full-precision chain, of all samples. `apply` sees those that are
  // not held out alone, in the same micro-batches whatever is held out.
  at::Tensor RunFullPrecision(const DecoderBlock& block, const LinearFunction& apply);
  void ShowInputs();
  ReconstructionError MeasureError() const;

  // All samples, the held-out ones last.
  at::Tensor full_precision_;
  at::Tensor quantized_;
  at::Tensor outputs_;  // of the block that was observed last, on the full-precision chain
  BlockInputOptions options_;
  BlockInputs inputs_;  // views of the first samples
  RotaryTable rotary_;
};

}  // namespace ptq

#endif  // PTQ_OBSERVERS_OBSERVED_BLOCK_H_
