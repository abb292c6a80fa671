// Round to nearest, the baseline and every other algorithm's start and fallback.
#ifndef PTQ_ALGORITHMS_RTN_RTN_H_
#define PTQ_ALGORITHMS_RTN_RTN_H_

#include <ATen/core/Tensor.h>

#include "algorithms/affine/affine_primitives.h"
#include "algorithms/affine/affine_quantized_tensor.h"
#include "algorithms/block_quantizer.h"
#include "common/quantization_scheme.h"

namespace ptq {

// One weight [N, K] by the scheme's scale rule. kFullRange: auto-round's formulas with V = 0 and
// alpha = beta = 1, symmetric or asymmetric (auto_round/data_type/int.py), bit-equal to the peer's
// rtn; fp16 scale, |s| >= 1e-5. kTorchao: ChooseQParamsAffine and QuantizeAffine in the weight's
// dtype. `stored_dtype` is the checkpoint's: the arithmetic of both rules starts from a weight in
// it (weights that were widened for compute are narrowed back exactly). Of a K-quant QuantizeKQuant
// without importance.
AffineQuantizedTensor QuantizeRtn(const at::Tensor& weight, at::ScalarType stored_dtype,
                                  const QuantizationScheme& scheme);

// Builds a record from codes chosen elsewhere. `codes` [N, K] integers in signed storage, `scale`
// and `zero_point` (undefined: 0) [N/b0, K/b1].
AffineQuantizedTensor MakeRecord(const at::Tensor& codes, const at::Tensor& scale,
                                 const at::Tensor& zero_point, at::ScalarType stored_dtype,
                                 const QuantizationScheme& scheme);

// Rounds `weight` to scales chosen elsewhere (RoundToCodes).
AffineQuantizedTensor QuantizeToScales(const at::Tensor& weight, const QParams& qparams,
                                       at::ScalarType stored_dtype,
                                       const QuantizationScheme& scheme);

// rtn for each layer; needs no calibration data.
class RtnBlockQuantizer final : public BlockQuantizer {
 public:
  explicit RtnBlockQuantizer(at::ScalarType stored_dtype) : stored_dtype_(stored_dtype) {}
  absl::StatusOr<QuantizedBlock> QuantizeBlock(const BlockQuantizationRequest& request) override;

 private:
  at::ScalarType stored_dtype_;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_RTN_RTN_H_
