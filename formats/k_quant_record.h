// Records of K-quants as tensors of a job's files: int8 codes "<module>._weight_qdata" as others
// have, float16 "_super_scale" and "_super_minimum" [N, K/256], int8 "_sub_scale" and
// "_sub_minimum" [N, K/g]; no minima in symmetric types. Not a layout of torchao's: jobs alone keep
// and read it.
#ifndef PTQ_FORMATS_K_QUANT_RECORD_H_
#define PTQ_FORMATS_K_QUANT_RECORD_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "algorithms/affine/affine_quantized_tensor.h"
#include "formats/headers/planned_module.h"
#include "formats/record_file.h"

namespace ptq {

// All of `module`, whose scheme is a K-quant.

// The first field of `record` that is not what `module` announces, as a sentence; empty if all are:
// shapes, dtypes, codes and integers in range, finite scales. May throw c10::Error.
std::string KQuantMisfit(const PlannedModule& module, const AffineQuantizedTensor& record);
// As RecordTensors and RecordTensorNames.
std::vector<NamedTensor> KQuantTensors(const PlannedModule& module,
                                       const AffineQuantizedTensor& record);
std::vector<std::string> KQuantTensorNames(const PlannedModule& module);
// As ReadRecord, but for the ranges that KQuantMisfit looks at.
absl::StatusOr<AffineQuantizedTensor> ReadKQuantRecord(const PlannedModule& module,
                                                       const TensorSource& read);

}  // namespace ptq

#endif  // PTQ_FORMATS_K_QUANT_RECORD_H_
