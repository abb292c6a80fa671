// A decoder-only language model whose weights are loaded piece by piece: embedding, one block at a
// time, final norm with head.
#ifndef PTQ_MODELS_DECODER_MODEL_H_
#define PTQ_MODELS_DECODER_MODEL_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/checkpoint_reader.h"
#include "formats/headers/model_config.h"
#include "formats/headers/tensor_table.h"
#include "models/decoder_block.h"
#include "models/norm.h"

namespace ptq {

// Where and in which dtype a model computes.
struct ComputeOptions {
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;
};

// The dtype to compute in for weights stored as `stored`: the stored one on CUDA; on a CPU bfloat16
// only where it has native bf16 products (AMX or AVX512-BF16), else float32. Values don't change by
// widening, so quantized weights are still those that a loader sees.
at::ScalarType ChooseComputeDtype(at::Device device, at::ScalarType stored);

// Final norm and language-model head.
class LanguageModelHead {
 public:
  // hidden [..., D] -> logits [..., V] in float32: the two below.
  at::Tensor Logits(const at::Tensor& hidden) const { return Project(Normalize(hidden)); }
  // The final norm, [..., D] in the same dtype. Differentiable.
  at::Tensor Normalize(const at::Tensor& hidden) const;
  // Normalized states [..., D] -> logits [..., V] in float32: divided and capped.
  at::Tensor Project(const at::Tensor& normalized) const;
  // d loss / d normalized [n, D] in the compute dtype, from d loss / d logits [n, V] and the logits
  // [n, V] that Project gave.
  at::Tensor ProjectBackward(const at::Tensor& logits_gradient, const at::Tensor& logits) const;

  Norm norm;
  // [V, D]; the embedding if tied. In the checkpoint's dtype, widened piece by piece where another
  // one is computed in: of a large vocabulary a wide copy would be the largest tensor of a job.
  at::Tensor head_weight;
  double divisor = 1;  // of the logits
  double soft_cap =
      0;  // behind the division: logits become cap * tanh(logits / cap); 0: they don't

 private:
  // The head's weight alone.
  at::Tensor Product(const at::Tensor& normalized) const;
  at::Tensor ProductBackward(const at::Tensor& logits_gradient) const;
};

// Thread-compatible. `reader` must outlive it.
class DecoderModel {
 public:
  // kUnimplemented for a model_type that is not supported.
  static absl::StatusOr<std::unique_ptr<DecoderModel>> Create(const ModelConfig& config,
                                                              const CheckpointReader& reader,
                                                              const ComputeOptions& options);

  const ModelConfig& config() const { return config_; }
  const ComputeOptions& options() const { return options_; }
  int64_t block_count() const { return config_.num_hidden_layers; }

  // ids [B, T] int64 (CPU) -> hidden [B, T, D] in the compute dtype on the device: the embedding,
  // scaled and with the positions added where the family does so. It is read for the call and
  // released after it. kInvalidArgument for more tokens than there are learned positions.
  absl::StatusOr<at::Tensor> Embed(const at::Tensor& ids) const;
  // The same in memory that `allocate` makes, anywhere, sample by sample: no copy of all beside it.
  using HiddenAllocator = std::function<at::Tensor(at::IntArrayRef shape, at::ScalarType dtype)>;
  absl::StatusOr<at::Tensor> Embed(const at::Tensor& ids, const HiddenAllocator& allocate) const;
  // Reads block `index`; nothing else stays loaded.
  absl::StatusOr<std::unique_ptr<DecoderBlock>> LoadBlock(int64_t index) const;
  // The same of tensors that `read` gives by name, in any dtype, on any device; they are shared
  // where both fit already.
  using TensorSource = std::function<absl::StatusOr<at::Tensor>(const std::string& name)>;
  absl::StatusOr<std::unique_ptr<DecoderBlock>> MakeBlock(int64_t index,
                                                          const TensorSource& read) const;
  // The tensors of block `index`, in the order in which they are read; empty if there is none.
  std::vector<TableTensor> BlockTensors(int64_t index) const;
  const CheckpointReader& reader() const { return reader_; }
  absl::StatusOr<LanguageModelHead> LoadHead() const;
  // For positions 0..length-1; empty in a model without rotary embeddings. transformers' default,
  // linear, dynamic, llama3, yarn and longrope scalings, attention factors included; float32
  // inside, rounded to the compute dtype as transformers does.
  RotaryTable MakeRotaryTable(int64_t length) const;

 private:
  DecoderModel(const ModelConfig& config, const CheckpointReader& reader,
               const ComputeOptions& options)
      : config_(config), reader_(reader), options_(options) {}
  // The embedding, after a check of `ids` against it.
  absl::StatusOr<at::Tensor> ReadEmbedding(const at::Tensor& ids) const;
  // A tensor outside of the blocks.
  absl::StatusOr<at::Tensor> ReadOuter(TensorPart part, TensorRole role) const;
  // Learned positions [T, D] on the device in the compute dtype; undefined if there are none.
  absl::StatusOr<at::Tensor> ReadPositions(int64_t length) const;
  // What goes into the first block, from rows [..., T, D] of the embedding in the compute dtype.
  at::Tensor Embedded(const at::Tensor& rows, const at::Tensor& positions) const;

  ModelConfig config_;
  const CheckpointReader& reader_;
  ComputeOptions options_;
};

}  // namespace ptq

#endif  // PTQ_MODELS_DECODER_MODEL_H_
