// Activation functions of MLPs.
#ifndef PTQ_MODELS_ACTIVATION_H_
#define PTQ_MODELS_ACTIVATION_H_

#include <ATen/core/Tensor.h>

#include "formats/headers/model_config.h"

namespace ptq {

// Differentiable.
at::Tensor Activate(Activation activation, const at::Tensor& input);

}  // namespace ptq

#endif  // PTQ_MODELS_ACTIVATION_H_
