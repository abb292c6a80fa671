#include "algorithms/auto_round/fused_linear.h"

#include <ATen/ATen.h>

#include "models/linear.h"

namespace ptq {

bool FusedLinear::HasFp8WeightGradient(int64_t tokens) const {
  return fp8_ && IsFp8Product(shared_.out_features(), shared_.in_features, tokens);
}

Fp8Wanted FusedLinear::InputLayouts(int64_t tokens) const {
  const bool fp8_forward = shared_.codes.defined();
  const bool fp8_backward = HasFp8WeightGradient(tokens);
  return {.wide = !fp8_forward || !fp8_backward,
          .rows = fp8_forward,
          .columns = fp8_backward,
          .tile_scales = TakesTileScales(tokens)};
}

at::Tensor FusedLinear::Forward(Fp8Layouts& input) const {
  at::Tensor output;
  if (shared_.codes.defined()) {
    output = Fp8Product(input.rows, shared_.codes);
    if (shared_.bias.defined()) output.add_(shared_.bias);
  } else {
    output = ApplyLinear(shared_.weight, shared_.bias, input.wide);
  }
  input.rows = {};
  if (input.columns.defined()) input.wide = at::Tensor();
  return output;
}

Fp8Wanted FusedLinear::GradientLayouts(int64_t tokens, bool of_input) const {
  const bool fp8_input =
      of_input && fp8_ && IsFp8Product(tokens, shared_.in_features, shared_.out_features());
  const bool fp8_weight = HasFp8WeightGradient(tokens);
  return {.wide = (of_input && !fp8_input) || !fp8_weight,
          .rows = fp8_input,
          .columns = fp8_weight,
          .tile_scales = false};
}

at::Tensor FusedLinear::InputGradient(const Fp8Layouts& gradient) const {
  if (!gradient.rows.defined()) return at::mm(gradient.wide, shared_.weight);
  const Fp8Wanted transposed = {.columns = true,
                                .tile_scales = TakesTileScales(shared_.out_features())};
  if (!shared_.codes.defined()) {
    return Fp8Product(gradient.rows, MakeFp8Layouts(shared_.weight, transposed).columns);
  }
  const at::Tensor& codes = shared_.codes.values;
  const at::Tensor& scale = shared_.codes.scale;
  const Fp8TileSpans spans = {
      .source = Fp8Source::kCodes,
      .weight = {static_cast<uint8_t*>(codes.mutable_data_ptr()), scale.mutable_data_ptr<float>(),
                 scale.size(1), scale.stride(1)},
      .rows = codes.size(0),
      .columns = codes.size(1),
      .dtype = HiddenDtype::kBFloat16};
  return Fp8Product(gradient.rows, MakeFp8Layouts(spans, transposed, codes).columns);
}

at::Tensor FusedLinear::WeightGradient(const Fp8Layouts& gradient, Fp8Layouts& input,
                                       at::Tensor sum) const {
  if (gradient.columns.defined()) {  // cuBLASLt's product with scales by blocks does not add
    const at::Tensor product = Fp8Product(gradient.columns, input.columns);
    sum = sum.defined() ? sum.add_(product) : product;
  } else {
    sum = sum.defined() ? sum.addmm_(gradient.wide.t(), input.wide)
                        : at::mm(gradient.wide.t(), input.wide);
  }
  input = {};
  return sum;
}

}  // namespace ptq
