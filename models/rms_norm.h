// Root-mean-square normalization, with the rounding order of transformers.
#ifndef PTQ_MODELS_RMS_NORM_H_
#define PTQ_MODELS_RMS_NORM_H_

#include <ATen/core/Tensor.h>

namespace ptq {

// hidden [..., D], weight [D] of the same dtype -> [..., D]. Normalized in float32 and rounded to
// the input's dtype before the weight is applied: at::rms_norm rounds after it. Differentiable.
at::Tensor RmsNorm(const at::Tensor& hidden, const at::Tensor& weight, double epsilon);

}  // namespace ptq

#endif  // PTQ_MODELS_RMS_NORM_H_
