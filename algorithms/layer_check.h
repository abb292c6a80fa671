// What algorithms check before they quantize.
#ifndef PTQ_ALGORITHMS_LAYER_CHECK_H_
#define PTQ_ALGORITHMS_LAYER_CHECK_H_

#include <string>

#include "absl/status/status.h"
#include "common/quantization_scheme.h"
#include "models/linear.h"
#include "observers/observed_block.h"

namespace ptq {

// kInvalidArgument, naming the layer, if its weight is not a matrix with finite values only, or if
// the scheme's bits or group size do not fit it. May throw c10::Error.
absl::Status CheckLayer(const Linear& linear, const QuantizationScheme& scheme);

// kFailedPrecondition if there are no statistics for every linear of the block: `algorithm`, the
// name that a job uses, needs calibration data.
absl::Status CheckStatistics(const ObservedBlock& observed, const std::string& algorithm);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_LAYER_CHECK_H_
