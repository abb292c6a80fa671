// One linear layer's weight while it is tuned: what the tuning loop asks of each recipe's
// parameters.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_TUNABLE_WEIGHT_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_TUNABLE_WEIGHT_H_

#include <ATen/core/Tensor.h>

#include "algorithms/affine/affine_quantized_tensor.h"
#include "algorithms/auto_round/tuning_state.h"

namespace ptq {

// Where a weight is decoded to: in full, or for an FP8 product in two parts.
struct DecodedWeight {
  at::Tensor weight;  // [N, K], contiguous, of the weight's dtype; or undefined, and
  at::Tensor codes;   // [N, K] float8_e4m3fn, contiguous: q - z, |q - z| <= 16
  at::Tensor scale;   // [N, K / 128] float32, rows contiguous
};

// Works on the weight's device: host loops, or the kernels of libptq_cuda.so. Autograd never sees
// it. Methods throw c10::Error. Thread-compatible.
class TunableWeight {
 public:
  virtual ~TunableWeight() = default;

  // Writes the weight that the current parameters decode to.
  virtual void FakeQuantize(const DecodedWeight& output) = 0;

  // One step of descent from `gradient` = dL / d weight, the weight being what was written last
  // (contiguous, same shape and dtype; the gradient's scale does not matter), at the rates of step
  // *rates.step. Then writes the weight of the new parameters, as FakeQuantize does.
  virtual void Step(const at::Tensor& gradient, const StepRates& rates,
                    const DecodedWeight& output) = 0;

  // The codes and scales that the recipe keeps.
  virtual AffineQuantizedTensor Record() const = 0;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_TUNABLE_WEIGHT_H_
