// Affine records as tensors of a safetensors file in torchao's layout, and back: the payload of the
// affine format's shards, and of what a job keeps of its blocks.
#ifndef PTQ_FORMATS_RECORD_FILE_H_
#define PTQ_FORMATS_RECORD_FILE_H_

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "formats/quantized_checkpoint.h"
#include "formats/safetensors_writer.h"

namespace ptq {

// kFailedPrecondition naming tensor and field unless `record` is what `module` announces: shapes,
// dtypes, ranges, finite scales that are not 0, zero points that fit in a byte (0 when symmetric);
// of a K-quant what KQuantMisfit says.
absl::Status ValidateRecord(const PlannedModule& module, const AffineQuantizedTensor& record);

// The tensors of a valid record: "<module>._weight_qdata" and so on, on the CPU.
std::vector<NamedTensor> RecordTensors(const PlannedModule& module,
                                       const AffineQuantizedTensor& record);
// Their names and types before the record exists.
std::vector<std::string> RecordTensorNames(const PlannedModule& module);

// Reads the records of `modules`, in that order, from the file at `path`, whatever else it holds.
// kNotFound if there is no file; kDataLoss naming file and tensor if it is damaged or of another
// job.
absl::StatusOr<std::vector<QuantizedModule>> ReadRecords(const std::string& path,
                                                         const std::vector<PlannedModule>& modules);

// One record out of its tensors, wherever they come from: `read` gives the tensor of that name,
// dtype and shape. kDataLoss naming the tensor for what `module` does not announce.
using TensorSource = std::function<absl::StatusOr<at::Tensor>(
    const std::string& name, at::ScalarType dtype, const std::array<int64_t, 2>& shape)>;
absl::StatusOr<AffineQuantizedTensor> ReadRecord(const PlannedModule& module,
                                                 const TensorSource& read);

}  // namespace ptq

#endif  // PTQ_FORMATS_RECORD_FILE_H_
