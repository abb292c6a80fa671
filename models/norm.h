// Normalizations of hidden states, with the rounding order of transformers.
#ifndef PTQ_MODELS_NORM_H_
#define PTQ_MODELS_NORM_H_

#include <ATen/core/Tensor.h>

#include "formats/headers/model_config.h"

namespace ptq {

struct Norm {
  at::Tensor weight;  // [D]
  at::Tensor bias;    // [D], or undefined
  NormKind kind = NormKind::kRms;
  double epsilon = 0;
};

// hidden [..., D] of the weight's dtype -> [..., D]. Differentiable. Root-mean-square norms are
// computed in float32: at::rms_norm rounds where only kRmsWide does.
at::Tensor ApplyNorm(const Norm& norm, const at::Tensor& hidden);

}  // namespace ptq

#endif  // PTQ_MODELS_NORM_H_
