// GPTQ's tensors: qweight, qzeros, scales, g_idx. Of the gptq format, and of auto-round's.
#ifndef PTQ_FORMATS_GPTQ_PACKING_H_
#define PTQ_FORMATS_GPTQ_PACKING_H_

#include <memory>

#include "formats/weight_packing.h"

namespace ptq {

struct GptqLayout {
  // What a stored zero point lacks: 1 in version 1, 0 in version 2.
  int zero_bias = 1;
  // Whether there is a g_idx: the group of each column, which records hold in ascending order only.
  bool with_index = true;
};

// qweight int32 [K*b/32, N] packed along K, qzeros int32 [G, N*b/32] packed along N, scales [G, N]
// (float16; any float when read), g_idx int32 [K]. `format` is named in refusals.
std::unique_ptr<WeightPacking> MakeGptqPacking(const std::string& format, GptqLayout layout);

}  // namespace ptq

#endif  // PTQ_FORMATS_GPTQ_PACKING_H_
