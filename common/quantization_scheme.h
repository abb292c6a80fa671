// The numeric recipe of one weight: what a job asks for and what a record was made with.
#ifndef PTQ_COMMON_QUANTIZATION_SCHEME_H_
#define PTQ_COMMON_QUANTIZATION_SCHEME_H_

#include <cstdint>

#include "common/k_quant.h"

namespace ptq {

// How a symmetric scale is derived from a group's values.
enum class ScaleRule {
  // auto-round's full-range rule: signed fp16 scale, the dominating side lands on code -2^(bits-1)
  // (auto_round/data_type/int.py). The default.
  kFullRange,
  // torchao's choose_qparams_affine: max(|lo|, hi) / ((qmax - qmin) / 2), scale in the weight's own
  // dtype (quant_primitives.py). RTN only.
  kTorchao,
};

// Auto-round's word for it; compressed-tensors calls this QuantizationArgs.
struct QuantizationScheme {
  static constexpr int64_t kPerChannel = -1;  // one group a row
  static constexpr int64_t kPerTensor = 0;    // one group a weight

  int bits = 4;              // 2..8
  int64_t group_size = 128;  // columns that share a scale, or one of the two names above
  bool symmetric = true;
  ScaleRule scale_rule = ScaleRule::kFullRange;
  KQuant k_quant = KQuant::kNone;  // fixes bits, group_size and symmetric (KQuantScheme)

  int64_t quant_min() const { return -(int64_t{1} << (bits - 1)); }  // signed storage
  int64_t quant_max() const { return (int64_t{1} << (bits - 1)) - 1; }
  // Groups in a weight of [out_features, in_features].
  int64_t GroupsPerRow(int64_t in_features) const {
    return group_size > 0 ? in_features / group_size : 1;
  }
  bool operator==(const QuantizationScheme&) const = default;
};

// The one scheme of a K-quant; not for kNone.
constexpr QuantizationScheme KQuantScheme(KQuant type) {
  const KQuantTraits traits = TraitsOf(type);
  return {.bits = traits.bits,
          .group_size = traits.group_size,
          .symmetric = traits.symmetric,
          .k_quant = type};
}

}  // namespace ptq

#endif  // PTQ_COMMON_QUANTIZATION_SCHEME_H_
