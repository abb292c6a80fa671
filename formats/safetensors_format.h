// A format that keeps the shape of a Hugging Face folder: each quantized weight becomes a few
// packed tensors, all else is copied untouched, and config.json says how to read them.
//
// A new format of this kind is one file: a WeightPacking, unless another format has it already, and
// the two directions of quantization_config.
#ifndef PTQ_FORMATS_SAFETENSORS_FORMAT_H_
#define PTQ_FORMATS_SAFETENSORS_FORMAT_H_

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/json.h"
#include "formats/checkpoint_folder.h"
#include "formats/checkpoint_format.h"
#include "formats/weight_packing.h"

namespace ptq {

// The scheme that most modules have; that of the first one among equals.
QuantizationScheme CommonScheme(const std::vector<PlannedModule>& modules);
// Linear layers inside blocks that are not quantized: what configs have to leave out.
std::vector<std::string> PlainLinears(const ExportPlan& plan);
// The head, tied or not, by the name that transformers gives it in every family and by the
// checkpoint's, if that is another one: "lm_head", "embed_out". Empty if it is quantized.
std::vector<std::string> PlainHead(const ExportPlan& plan);

class SafetensorsFormat : public CheckpointFormat {
 public:
  absl::Status CheckPlan(const ExportPlan& plan) const override;
  // While one block is packed, written and compared, another is read.
  absl::StatusOr<FileDigests> Write(const QuantizedCheckpoint& checkpoint,
                                    const std::string& folder,
                                    const CancellationToken& cancel) const override;
  absl::StatusOr<std::unique_ptr<QuantizedCheckpoint>> Open(
      const std::string& folder) const override;

 protected:
  // Writing.
  virtual std::unique_ptr<WeightPacking> PackingFor(const ExportPlan& plan) const = 0;
  virtual FolderConfig ConfigFor(const ExportPlan& plan) const = 0;
  // Of every shard.
  virtual std::map<std::string, std::string> MetadataFor(const ExportPlan& plan) const;

  // Reading: what a folder's quantization_config means.
  class Reading {
   public:
    virtual ~Reading() = default;
    virtual const WeightPacking& packing() const = 0;
    // None: the config leaves the module alone. kInvalidArgument or kFailedPrecondition naming the
    // key or the module for what no record can hold.
    virtual absl::StatusOr<std::optional<QuantizationScheme>> SchemeOf(
        const std::string& module) const = 0;
    // Whether `symmetric` of the schemes is known, or has to be asked of the tensors.
    virtual bool knows_symmetry() const { return true; }
    // Of the records; `stored` is that of the tensor WeightPacking::ScaleName.
    virtual DType ScaleDType(DType stored) const { return stored; }
  };
  // kUnimplemented: the format is only written.
  virtual absl::StatusOr<std::unique_ptr<Reading>> Read(const Json& quantization_config,
                                                        const CheckpointIndex& index) const;

 private:
  class Opened;
};

}  // namespace ptq

#endif  // PTQ_FORMATS_SAFETENSORS_FORMAT_H_
