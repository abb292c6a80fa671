// What a job keeps of its blocks while it works: one file of records each, in torchao's layout.
#ifndef PTQ_FORMATS_RECORD_FOLDER_H_
#define PTQ_FORMATS_RECORD_FOLDER_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/cancellation.h"
#include "formats/checkpoint_folder.h"
#include "formats/quantized_checkpoint.h"

namespace ptq {

// One job, one instance. Different blocks, and the outer shards, may be written at the same time.
class RecordFolder {
 public:
  enum class Kind {
    kRecords,  // files of records alone: what other formats are written from
    // Each file is a shard of the affine format: with the other tensors of its block, so that the
    // folder becomes a checkpoint of that format, and nothing has to be copied.
    kAffineShards,
  };

  // `folder` exists, or is made when the first file of records is. kInvalidArgument or kNotFound if
  // the plan does not fit its source.
  static absl::StatusOr<std::unique_ptr<RecordFolder>> Create(ExportPlan plan, std::string folder,
                                                              Kind kind);

  const ExportPlan& plan() const { return shards_.plan(); }
  // The file of decoder block `block`, or of kEmbeddingBlock or the head where these are quantized,
  // within the folder.
  std::string FileName(int64_t block) const;

  // Writes the block's file; of shards, what is not quantized is read from `reader` and copied
  // untouched. Re-opens it with a separately written decoder and compares before the rename.
  // Returns the file's SHA-256. kFailedPrecondition if a record is not what was planned, naming
  // tensor and field.
  absl::StatusOr<std::string> WriteBlock(int64_t block, const std::vector<QuantizedModule>& modules,
                                         const CheckpointReader& reader,
                                         const CancellationToken& cancel) const;
  // The inverse: the block's records, bit-equal to what was written. kDataLoss if the file is
  // damaged.
  absl::StatusOr<std::vector<QuantizedModule>> ReadBlock(int64_t block) const;

  // Of shards alone. The first and the last one, unless something in them is quantized, with their
  // names and SHA-256; then, with all there, the files around them, index and config.json.
  absl::StatusOr<FileDigests> WriteOuterShards(const CheckpointReader& reader,
                                               const CancellationToken& cancel) const;
  absl::Status Finalize() const;

 private:
  RecordFolder(CheckpointFolder shards, std::string folder, Kind kind)
      : shards_(std::move(shards)), folder_(std::move(folder)), kind_(kind) {}
  absl::StatusOr<std::string> WriteRecords(int64_t block,
                                           const std::vector<QuantizedModule>& valid) const;

  const CheckpointFolder shards_;
  const std::string folder_;
  const Kind kind_;
};

}  // namespace ptq

#endif  // PTQ_FORMATS_RECORD_FOLDER_H_
