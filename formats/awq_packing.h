// AWQ's GEMM tensors: qweight, qzeros, scales. Of the awq format, and of auto-round's.
#ifndef PTQ_FORMATS_AWQ_PACKING_H_
#define PTQ_FORMATS_AWQ_PACKING_H_

#include <memory>

#include "formats/weight_packing.h"

namespace ptq {

// qweight int32 [K, N/8], qzeros int32 [G, N/8] (eight outputs a word), scales [G, N] (float16; any
// float when read). `format` is named in refusals.
std::unique_ptr<WeightPacking> MakeAwqPacking(const std::string& format);

}  // namespace ptq

#endif  // PTQ_FORMATS_AWQ_PACKING_H_
