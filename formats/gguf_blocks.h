// Affine records as ggml's blocks of 32 elements (ggml-common.h): Q8_0, Q4_0 and Q5_0 hold
// symmetric records without loss; Q4_1 and Q5_1 hold asymmetric ones, whose minimum -uz * s becomes
// float16 (uz the unsigned zero point).
//
// A scale that spans more than 32 columns is repeated. Records of K-quants become their
// super-blocks (formats/gguf_super_blocks.h).
#ifndef PTQ_FORMATS_GGUF_BLOCKS_H_
#define PTQ_FORMATS_GGUF_BLOCKS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "algorithms/affine/affine_quantized_tensor.h"
#include "formats/headers/gguf_types.h"

namespace ptq {

// Rows `rows` of `record`, which lies contiguous on the CPU, as blocks of `type`, in that order.
// kFailedPrecondition naming `module`, field and place if a value does not fit: a zero point in a
// symmetric type, a scale that is no float16, a minimum beyond float16.
absl::StatusOr<std::string> EncodeGgufRows(const std::string& module,
                                           const AffineQuantizedTensor& record, GgufType type,
                                           const std::vector<int64_t>& rows);

// Decodes `data`, these rows as they stand in a file, by loops of its own, and compares each value
// with the record's bit by bit; for Q4_1 and Q5_1 with u * s + float16(-uz * s). kDataLoss.
absl::Status CheckGgufRows(const std::string& module, const AffineQuantizedTensor& record,
                           GgufType type, const std::vector<int64_t>& rows,
                           const std::string& data);

}  // namespace ptq

#endif  // PTQ_FORMATS_GGUF_BLOCKS_H_
