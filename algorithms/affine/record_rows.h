// Parts of a record.
#ifndef PTQ_ALGORITHMS_AFFINE_RECORD_ROWS_H_
#define PTQ_ALGORITHMS_AFFINE_RECORD_ROWS_H_

#include <cstdint>

#include "algorithms/affine/affine_quantized_tensor.h"

namespace ptq {

// Rows [begin, begin + count) of a record whose scales are those of single rows; shares its memory.
AffineQuantizedTensor RecordRows(const AffineQuantizedTensor& record, int64_t begin, int64_t count);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AFFINE_RECORD_ROWS_H_
