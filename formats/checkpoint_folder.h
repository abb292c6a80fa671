// What all formats of safetensors files share: the shards of an output folder, the tensors that are
// copied untouched, the files around them, and the order in which everything appears.
//
// One shard a block, and one each for what lies before and after the blocks; index and config.json
// last, so that a folder with an index is complete. Shard i of n is
// model-0000i-of-0000n.safetensors: 1 holds the embedding, 2..L+1 the blocks, L+2 final norm and
// head.
#ifndef PTQ_FORMATS_CHECKPOINT_FOLDER_H_
#define PTQ_FORMATS_CHECKPOINT_FOLDER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/cancellation.h"
#include "common/json.h"
#include "formats/hashing_writer.h"
#include "formats/headers/tensor_table.h"
#include "formats/quantized_checkpoint.h"
#include "formats/record_check.h"
#include "formats/safetensors_writer.h"

namespace ptq {

// What config.json says beside the source's own keys, and files that some loaders want beside it.
struct FolderConfig {
  std::optional<Json> quantization;   // quantization_config; none: a plain checkpoint
  std::optional<DType> dtype;         // that loaders are to compute in; none: the source's
  std::map<std::string, Json> files;  // by name
};

// One job, one instance. Const methods of different shards may run at the same time.
class CheckpointFolder {
 public:
  // Names of the tensors that stand for a quantized module's weight.
  using StoredNames = std::function<std::vector<std::string>(const PlannedModule&)>;

  // kInvalidArgument if a planned module is neither a linear layer of the model's blocks nor its
  // embedding or head, or of another shape; kNotFound if the source lacks it. `metadata` goes into
  // every shard.
  static absl::StatusOr<CheckpointFolder> Create(ExportPlan plan, std::string folder,
                                                 std::map<std::string, std::string> metadata,
                                                 StoredNames stored_names);

  int64_t shard_count() const { return static_cast<int64_t>(shards_.size()); }
  std::string ShardName(int64_t index) const;
  std::string ShardPath(int64_t index) const;
  const ExportPlan& plan() const { return plan_; }
  int64_t block_count() const { return plan_.source.config.num_hidden_layers; }

  // The quantized modules of `block`, kEmbeddingBlock .. block_count(), in the plan's order: those
  // of shard `block` + 1.
  const std::vector<PlannedModule>& modules(int64_t block) const {
    return modules_[static_cast<size_t>(block + 1)];
  }
  // `modules` are exactly the planned ones of `block`, and valid; kFailedPrecondition otherwise.
  // Returned in the plan's order, contiguous and on the CPU.
  absl::StatusOr<std::vector<QuantizedModule>> ValidModules(
      int64_t block, const std::vector<QuantizedModule>& modules) const;

  // Writes shard `index`: `quantized`, and the plain tensors of the shard out of `reader`.
  // `check_quantized` runs on the finished temporary file beside the check of the plain ones.
  // Returns the file's SHA-256.
  absl::StatusOr<std::string> WriteShard(
      int64_t index, std::vector<LazyTensor> quantized, const CheckpointReader& reader,
      const std::function<absl::Status(RecordCheck&)>& check_quantized,
      const CancellationToken& cancel) const;
  // Writes the first and the last shard, copied untouched, a piece in memory at a time; one with
  // quantized modules is left to WriteShard.
  absl::StatusOr<FileDigests> WriteOuterShards(const CheckpointReader& reader,
                                               const CancellationToken& cancel) const;

  // All shards are written: the files around them, the index, and config.json last. kDataLoss if
  // shards and index don't close.
  absl::Status Finalize(const FolderConfig& config) const;

 private:
  struct Shard {
    std::vector<std::string> plain;   // copied from the source
    std::vector<std::string> stored;  // written for quantized modules
  };

  CheckpointFolder() = default;
  absl::Status CopyOtherFiles() const;
  absl::StatusOr<Json> BuildIndex() const;
  absl::Status WriteConfig(const FolderConfig& config) const;

  ExportPlan plan_;
  std::string folder_;
  std::map<std::string, std::string> metadata_;
  std::vector<Shard> shards_;
  std::vector<std::vector<PlannedModule>> modules_;  // by shard
};

// The dtype that weights decode to: config.json's, or the embedding's where it names none.
DType CheckpointDType(const CheckpointInspection& source);

// A borrowed view for RecordCheck; `weight` as ValidModules returns it.
RecordView ViewOf(const PlannedModule& module, const AffineQuantizedTensor& weight);

}  // namespace ptq

#endif  // PTQ_FORMATS_CHECKPOINT_FOLDER_H_
