// The output side: a quantized model becomes a folder that loaders open.
//
// One shard a block, written as the block finishes, and one each for what lies before and after the
// blocks; index and config.json last, so that a folder with an index is complete. Shard i of n is
// model-0000i-of-0000n.safetensors: 1 holds the embedding, 2..L+1 the blocks, L+2 final norm and
// head.
#ifndef PTQ_FORMATS_CHECKPOINT_EXPORTER_H_
#define PTQ_FORMATS_CHECKPOINT_EXPORTER_H_

#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "algorithms/affine/affine_quantized_tensor.h"
#include "common/cancellation.h"
#include "formats/checkpoint_reader.h"
#include "formats/headers/inspect.h"

namespace ptq {

// What the exporter must know about each linear layer before the first block: the metadata of every
// shard lists all parameters of the model, or torchao's
// loader fails.
struct PlannedModule {
  std::string module;  // "model.layers.0.mlp.down_proj"
  int64_t out_features = 0;
  int64_t in_features = 0;
  QuantizationScheme scheme;
  bool transposed = false;  // the source's weight lies as [in, out]; a record never does
};

struct ExportPlan {
  CheckpointInspection source;
  std::vector<PlannedModule> modules;  // quantized ones, in the model's order
  std::vector<std::string> skipped;    // linear modules inside blocks that keep their dtype
  QuantizationScheme default_scheme;   // of the job: quantization_config's "default"
};

// One quantized linear of a block.
struct QuantizedModule {
  std::string module;
  AffineQuantizedTensor weight;
};

// One job, one instance. Different blocks, and the outer shards, may be written at the same time.
// Implementations: AffineExporter, DequantizedExporter.
class CheckpointExporter {
 public:
  virtual ~CheckpointExporter() = default;

  // Number of shards and the name of shard `index` (0-based).
  virtual int64_t shard_count() const = 0;
  virtual std::string ShardName(int64_t index) const = 0;

  // Writes the shard of decoder block `block`: its quantized weights, and everything else of the
  // block (norms, biases, skipped linears) read from `reader` and copied untouched. Re-opens it
  // with a separately written decoder and compares before the rename. Returns the file's SHA-256.
  // kFailedPrecondition if the format can't hold a record, naming tensor and field.
  virtual absl::StatusOr<std::string> WriteBlock(int64_t block,
                                                 const std::vector<QuantizedModule>& modules,
                                                 const CheckpointReader& reader) = 0;
  // The inverse of WriteBlock for a resumed job: the block's records, bit-equal to what was written
  // (for `dequantized`, from the record kept beside it). kDataLoss if the file is damaged.
  virtual absl::StatusOr<std::vector<QuantizedModule>> ReadBlock(int64_t block) const = 0;
  // Writes the first and the last shard, copied untouched, checked as WriteBlock does, a piece in
  // memory at a time. Returns the SHA-256 of both.
  virtual absl::StatusOr<std::array<std::string, 2>> WriteOuterShards(
      const CheckpointReader& reader, const CancellationToken& cancel) = 0;
  // All shards are written: copies tokenizer and generation files unchanged, writes the index and
  // config.json last, and checks the folder: index, files and tensors closed.
  virtual absl::Status Finalize() = 0;
};

// `folder` exists. Format "affine" or "dequantized".
absl::StatusOr<std::unique_ptr<CheckpointExporter>> MakeAffineExporter(ExportPlan plan,
                                                                       const std::string& folder);
absl::StatusOr<std::unique_ptr<CheckpointExporter>> MakeDequantizedExporter(
    ExportPlan plan, const std::string& folder, const std::string& record_folder);

}  // namespace ptq

#endif  // PTQ_FORMATS_CHECKPOINT_EXPORTER_H_
