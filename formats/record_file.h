// Affine records as tensors of a safetensors file in torchao's layout, and back: the payload of the
// affine format's shards, and what the dequantized format keeps beside its folder for resuming.
#ifndef PTQ_FORMATS_RECORD_FILE_H_
#define PTQ_FORMATS_RECORD_FILE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "formats/checkpoint_exporter.h"
#include "formats/safetensors_writer.h"

namespace ptq {

// What a record of `module` looks like, beyond its scheme.
struct RecordLayout {
  PlannedModule module;
  at::ScalarType scale_dtype = at::kHalf;      // of the record
  at::ScalarType original_dtype = at::kFloat;  // of the weight in the source checkpoint
};

// The layout of a planned module; kNotFound if the source has no such weight.
absl::StatusOr<RecordLayout> RecordLayoutOf(const PlannedModule& module,
                                            const CheckpointIndex& source);

// kFailedPrecondition naming tensor and field unless `record` is what `layout` announces: shapes,
// dtypes, ranges, finite scales that are not 0, zero points that fit in a byte (0 when symmetric).
absl::Status ValidateRecord(const RecordLayout& layout, const AffineQuantizedTensor& record);

// The tensors of a valid record: "<module>._weight_qdata" and so on, on the CPU.
std::vector<NamedTensor> RecordTensors(const RecordLayout& layout,
                                       const AffineQuantizedTensor& record);
// Their names and types before the record exists.
std::vector<std::string> RecordTensorNames(const PlannedModule& module);

// Reads the records of `layouts`, in that order, from the file at `path`, whatever else it holds.
// kNotFound if there is no file; kDataLoss naming file and tensor if it is damaged or of another
// job.
absl::StatusOr<std::vector<QuantizedModule>> ReadRecords(const std::string& path,
                                                         const std::vector<RecordLayout>& layouts);

}  // namespace ptq

#endif  // PTQ_FORMATS_RECORD_FILE_H_
