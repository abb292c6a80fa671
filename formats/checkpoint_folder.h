// What all output formats share: the shards of an output folder, the tensors that are copied
// untouched, the files around them, and the order in which everything appears.
#ifndef PTQ_FORMATS_CHECKPOINT_FOLDER_H_
#define PTQ_FORMATS_CHECKPOINT_FOLDER_H_

#include <array>
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
#include "formats/checkpoint_exporter.h"
#include "formats/headers/tensor_table.h"
#include "formats/record_check.h"
#include "formats/record_file.h"
#include "formats/safetensors_writer.h"

namespace ptq {

// One job, one instance. Const methods of different shards may run at the same time.
class CheckpointFolder {
 public:
  // Names of the tensors that stand for a quantized module's weight.
  using StoredNames = std::function<std::vector<std::string>(const PlannedModule&)>;

  // kInvalidArgument if a planned module is no linear layer of the model's blocks, or of another
  // shape; kNotFound if the source lacks it. `metadata` goes into every shard.
  static absl::StatusOr<CheckpointFolder> Create(ExportPlan plan, std::string folder,
                                                 std::map<std::string, std::string> metadata,
                                                 StoredNames stored_names);

  int64_t shard_count() const { return static_cast<int64_t>(shards_.size()); }
  std::string ShardName(int64_t index) const;
  std::string ShardPath(int64_t index) const;
  const ExportPlan& plan() const { return plan_; }
  int64_t block_count() const { return plan_.source.config.num_hidden_layers; }

  // Layouts of the quantized modules of `block`, in the plan's order.
  const std::vector<RecordLayout>& layouts(int64_t block) const {
    return layouts_[static_cast<size_t>(block)];
  }
  // `modules` are exactly the planned ones of `block`, and valid; kFailedPrecondition otherwise.
  // Returned in the plan's order, contiguous and on the CPU.
  absl::StatusOr<std::vector<QuantizedModule>> ValidModules(
      int64_t block, const std::vector<QuantizedModule>& modules) const;

  // Writes shard `index`: `quantized`, and the plain tensors of the shard out of `reader`.
  // `check_quantized` runs on the finished temporary file beside the check of the plain ones.
  absl::StatusOr<std::string> WriteShard(
      int64_t index, std::vector<LazyTensor> quantized, const CheckpointReader& reader,
      const std::function<absl::Status(RecordCheck&)>& check_quantized) const {
    return WriteShard(index, std::move(quantized), reader, check_quantized, nullptr);
  }
  // CheckpointExporter::WriteOuterShards.
  absl::StatusOr<std::array<std::string, 2>> WriteOuterShards(
      const CheckpointReader& reader, const CancellationToken& cancel) const;

  // The files around the shards, the index, and config.json last with `quantization_config` added
  // (or unchanged). kDataLoss if shards and index don't close.
  absl::Status Finalize(const std::optional<Json>& quantization_config) const;

 private:
  struct Shard {
    std::vector<std::string> plain;   // copied from the source
    std::vector<std::string> stored;  // written for quantized modules
  };

  CheckpointFolder() = default;
  // `cancel` may be null.
  absl::StatusOr<std::string> WriteShard(
      int64_t index, std::vector<LazyTensor> quantized, const CheckpointReader& reader,
      const std::function<absl::Status(RecordCheck&)>& check_quantized,
      const CancellationToken* cancel) const;
  absl::Status CopyOtherFiles() const;
  absl::StatusOr<Json> BuildIndex() const;
  absl::Status WriteConfig(const std::optional<Json>& quantization_config) const;

  ExportPlan plan_;
  std::string folder_;
  std::map<std::string, std::string> metadata_;
  std::vector<Shard> shards_;
  std::vector<std::vector<RecordLayout>> layouts_;  // by block
};

// The dtype that weights decode to: config.json's, or the embedding's where it names none.
DType CheckpointDType(const CheckpointInspection& source);

// A borrowed view for RecordCheck; `module.weight` as ValidModules returns it.
RecordView ViewOf(const RecordLayout& layout, const QuantizedModule& module);

}  // namespace ptq

#endif  // PTQ_FORMATS_CHECKPOINT_FOLDER_H_
