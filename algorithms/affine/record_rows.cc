#include "algorithms/affine/record_rows.h"

namespace ptq {

AffineQuantizedTensor RecordRows(const AffineQuantizedTensor& record, int64_t begin,
                                 int64_t count) {
  AffineQuantizedTensor rows = record;
  for (at::Tensor* part : TensorsOf(rows)) *part = part->narrow(0, begin, count);
  return rows;
}

}  // namespace ptq
