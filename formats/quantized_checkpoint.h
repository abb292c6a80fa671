// A quantized model, whatever files it lies in: what every output format is written from.
#ifndef PTQ_FORMATS_QUANTIZED_CHECKPOINT_H_
#define PTQ_FORMATS_QUANTIZED_CHECKPOINT_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/checkpoint_exporter.h"
#include "formats/checkpoint_reader.h"

namespace ptq {

// Implementations: the records of a job beside its original checkpoint, and one for each format
// that can be read back (CheckpointFormat::Open). Const methods may run at the same time.
class QuantizedCheckpoint {
 public:
  virtual ~QuantizedCheckpoint() = default;

  // Modules, schemes and config; the folder with the tokenizer's files is
  // plan().source.index.folder().
  virtual const ExportPlan& plan() const = 0;
  // The records of decoder block `block` in the plan's order, on the CPU. kDataLoss if a file is
  // damaged; kFailedPrecondition naming tensor and field if what it holds is no affine record.
  virtual absl::StatusOr<std::vector<QuantizedModule>> ReadBlock(int64_t block) const = 0;
  // Every tensor that is not quantized, by its name in the tensor table.
  virtual const CheckpointReader& plain() const = 0;
};

}  // namespace ptq

#endif  // PTQ_FORMATS_QUANTIZED_CHECKPOINT_H_
