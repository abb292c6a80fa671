// The three products of one SharedLinear in a fused pass, each in 16 bits or in FP8.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_FUSED_LINEAR_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_FUSED_LINEAR_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "algorithms/auto_round/block_pass.h"
#include "algorithms/auto_round/fp8.h"

namespace ptq {

// In FP8 (docs/tuning.md): the gradients of weight and input always where the sizes allow, the
// forward product where the weight is there as codes, which e4m3 holds exactly. Rows are tokens.
class FusedLinear {
 public:
  // `shared` outlives it.
  FusedLinear(const SharedLinear& shared, bool fp8) : shared_(shared), fp8_(fp8) {}

  // Whether any of the three is in FP8.
  bool HasFp8Product(int64_t tokens) const {
    return shared_.codes.defined() || HasFp8WeightGradient(tokens);
  }

  // What the maker of an input [tokens, K] makes of it.
  Fp8Wanted InputLayouts(int64_t tokens) const;
  // [tokens, K] -> [tokens, N]. Drops the layouts that the weight's gradient does not need.
  at::Tensor Forward(Fp8Layouts& input) const;

  // What the maker of an output's gradient [tokens, N] makes of it.
  Fp8Wanted GradientLayouts(int64_t tokens, bool of_input) const;
  at::Tensor InputGradient(const Fp8Layouts& gradient) const;
  // Contiguous; added to `sum` in place where that is defined. Drops `input`.
  at::Tensor WeightGradient(const Fp8Layouts& gradient, Fp8Layouts& input, at::Tensor sum) const;

 private:
  bool HasFp8WeightGradient(int64_t tokens) const;

  const SharedLinear& shared_;
  bool fp8_;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_FUSED_LINEAR_H_
