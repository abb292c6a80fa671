// Reads packed weights back and compares them with their records, code by code: plain loops over
// raw words that share nothing with formats/bit_packing.h, no libtorch. Each returns kDataLoss at
// the first difference, naming file and tensor.
#ifndef PTQ_FORMATS_PACKED_CHECK_H_
#define PTQ_FORMATS_PACKED_CHECK_H_

#include "absl/status/status.h"
#include "formats/record_check.h"

namespace ptq {

// compressed-tensors' weight_packed, weight_scale, weight_shape, and weight_zero_point unless
// `symmetric`.
absl::Status CheckCompressedTensors(const RecordView& record, bool symmetric, RecordCheck& file);
// GPTQ's qweight, qzeros, scales, and g_idx if `with_index`; a stored zero point is the zero point
// minus `zero_bias` (1 in v1).
absl::Status CheckGptq(const RecordView& record, int zero_bias, bool with_index, RecordCheck& file);
// AWQ's qweight, qzeros, scales.
absl::Status CheckAwq(const RecordView& record, RecordCheck& file);

}  // namespace ptq

#endif  // PTQ_FORMATS_PACKED_CHECK_H_
