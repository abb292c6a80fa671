// A quantized model, whatever files it lies in: what every output format is written from.
#ifndef PTQ_FORMATS_QUANTIZED_CHECKPOINT_H_
#define PTQ_FORMATS_QUANTIZED_CHECKPOINT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "algorithms/affine/affine_quantized_tensor.h"
#include "formats/checkpoint_reader.h"
#include "formats/headers/inspect.h"
#include "formats/headers/planned_module.h"

namespace ptq {

// What is known of a quantized model before its first record.
struct ExportPlan {
  // The original checkpoint; of a folder that was quantized before, the model as it was
  // (config.json without quantization_config) and the tensors that are there now.
  CheckpointInspection source;
  std::vector<PlannedModule> modules;  // quantized ones, in the model's order
  std::vector<std::string> skipped;    // linear modules inside blocks that keep their dtype
  QuantizationScheme default_scheme;   // what most modules have: of the job, or of the config
};

// One quantized weight.
struct QuantizedModule {
  std::string module;
  AffineQuantizedTensor weight;
};

// Implementations: the records of a job beside its original checkpoint, and one for each format
// that can be read back (CheckpointFormat::Open). Const methods may run at the same time.
class QuantizedCheckpoint {
 public:
  virtual ~QuantizedCheckpoint() = default;

  // Modules, schemes and config; the folder with config.json and the tokenizer's files is
  // plan().source.index.folder().
  virtual const ExportPlan& plan() const = 0;
  // The records of decoder block `block`, or of the embedding or the head where these are planned,
  // in the plan's order, on the CPU. kDataLoss if a file is
  // damaged; kFailedPrecondition naming tensor and field if what it holds is no affine record.
  virtual absl::StatusOr<std::vector<QuantizedModule>> ReadBlock(int64_t block) const = 0;
  // Every tensor that is not quantized, by its name in the tensor table.
  virtual const CheckpointReader& plain() const = 0;
};

}  // namespace ptq

#endif  // PTQ_FORMATS_QUANTIZED_CHECKPOINT_H_
