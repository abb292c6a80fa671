// The dtypes that blocks are tuned in.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_HIDDEN_DTYPE_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_HIDDEN_DTYPE_H_

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include "algorithms/auto_round/tuning_state.h"

namespace ptq {

// Throws c10::Error for others.
inline HiddenDtype HiddenDtypeOf(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return HiddenDtype::kFloat32;
    case at::kBFloat16:
      return HiddenDtype::kBFloat16;
    case at::kHalf:
      return HiddenDtype::kHalf;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(
          false, "Auto-Round computes in float32, bfloat16 and float16, not ", dtype);
  }
}

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_HIDDEN_DTYPE_H_
