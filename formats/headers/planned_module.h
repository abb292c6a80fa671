// One linear layer that a model has quantized, before its record exists.
#ifndef PTQ_FORMATS_HEADERS_PLANNED_MODULE_H_
#define PTQ_FORMATS_HEADERS_PLANNED_MODULE_H_

#include <cstdint>
#include <string>

#include "common/quantization_scheme.h"
#include "formats/headers/dtype.h"

namespace ptq {

struct PlannedModule {
  std::string module;  // "model.layers.0.mlp.down_proj"
  int64_t out_features = 0;
  int64_t in_features = 0;
  QuantizationScheme scheme;
  DType original_dtype = DType::kF32;  // of the weight before it was quantized
  DType scale_dtype = DType::kF16;     // of the record: F16, BF16 or F32
  bool transposed = false;             // the source's weight lies as [in, out]; a record never does
};

// The dtype of the scales that a job makes by `rule` of weights in `original`.
inline DType ScaleDTypeOf(ScaleRule rule, DType original) {
  return rule == ScaleRule::kTorchao ? original : DType::kF16;
}

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_PLANNED_MODULE_H_
