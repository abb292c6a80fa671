// auto-round's full-range rule for scales and the rounding that belongs to it
// (auto_round/data_type/int.py, with V = 0, alpha = beta = 1): shared by rtn, opt-rtn and GPTQ.
#ifndef PTQ_ALGORITHMS_RTN_FULL_RANGE_H_
#define PTQ_ALGORITHMS_RTN_FULL_RANGE_H_

#include <ATen/core/Tensor.h>

#include "algorithms/affine/affine_primitives.h"
#include "common/quantization_scheme.h"

namespace ptq {

// Rounds float32 scales to float16 (saturating), and lifts |s| to at least 1e-5 in float16 with the
// sign kept; zero becomes +1e-5. The smallest magnitude is fp16(1e-5) = 1.00136e-5.
at::Tensor ToStoredScale(const at::Tensor& scale);

// Scale float16 and zero point int32 in signed storage, both [N/b0, K/b1], for a weight [N, K]:
//   symmetric: the extreme of the larger side (ties: positive) lands on code -2^(bits-1), so a
//   group whose positive side dominates has a negative scale; zero point 0; asymmetric: s = (hi -
//   lo) / (2^bits - 1), z = rint(-lo / s), both in float32, z clamped to the codes' range
//   (auto-round leaves it unclamped, which differs only where s sits on its floor).
QParams ChooseFullRangeQParams(const at::Tensor& weight, const QuantizationScheme& scheme);

// clamp(rint(W / s) + z, quant_min, quant_max) as int8 [N, K]: division in float32 by the widened
// scale, half to even. Works through the rows in pieces, so that temporaries stay small.
at::Tensor RoundToCodes(const at::Tensor& weight, const QParams& qparams,
                        const QuantizationScheme& scheme);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_RTN_FULL_RANGE_H_
