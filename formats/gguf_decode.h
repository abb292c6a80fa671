// ggml's blocks of 32 elements as affine records: the way back of gguf_blocks.h.
#ifndef PTQ_FORMATS_GGUF_DECODE_H_
#define PTQ_FORMATS_GGUF_DECODE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "algorithms/affine/affine_quantized_tensor.h"
#include "formats/headers/gguf_types.h"
#include "formats/headers/planned_module.h"

namespace ptq {

// Of the records that blocks of `type` are; none for plain types and those without such records.
std::optional<QuantizationScheme> SchemeOfGgufType(GgufType type);

// The record of `module` out of `data`, its rows in the order of the file: record row rows[i] is
// row i of the file. A block whose scale is 0 becomes codes 0, with scale 1: the values are the
// same.
//
// Q4_1 and Q5_1 have a minimum m instead of a zero point: value = u * s + m. A record holds that
// where m is a multiple of s, by 0 to 15 (31). A writer of affine records rounds -uz * s to
// float16: where m is such a rounding, the record is the one that it was made of.
// kFailedPrecondition naming tensor and place for any other minimum, which a quantizer chose
// freely, and for a scale that is not finite.
absl::StatusOr<AffineQuantizedTensor> DecodeGgufRecord(const PlannedModule& module, GgufType type,
                                                       const std::vector<int64_t>& rows,
                                                       const std::string& data);

// A block as it stands in a file: value i is codes[i] * scale, less the type's middle; plus the
// minimum where the type has one.
struct GgufBlock {
  float scale = 0;
  float minimum = 0;
  int8_t codes[32];  // Q8_0's as they are; others from 0 on, less 8 of Q4_0 and 16 of Q5_0
};
GgufBlock UnpackGgufBlock(GgufType type, const char* data);

// The float16 at `data`, whatever its alignment.
float HalfAt(const void* data);

// The values of `count` blocks of a quantized type, in float32, which holds them exactly but for
// the sum of Q4_1 and Q5_1.
void DecodeGgufValues(GgufType type, const char* data, int64_t count, float* values);

}  // namespace ptq

#endif  // PTQ_FORMATS_GGUF_DECODE_H_
