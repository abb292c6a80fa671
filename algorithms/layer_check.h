// What every algorithm checks of a linear layer before it quantizes it.
#ifndef PTQ_ALGORITHMS_LAYER_CHECK_H_
#define PTQ_ALGORITHMS_LAYER_CHECK_H_

#include "absl/status/status.h"
#include "common/quantization_scheme.h"
#include "models/linear.h"

namespace ptq {

// kInvalidArgument, naming the layer, if its weight is not a matrix with finite values only, or if
// the scheme's bits or group size do not fit it. May throw c10::Error.
absl::Status CheckLayer(const Linear& linear, const QuantizationScheme& scheme);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_LAYER_CHECK_H_
