#include "models/experts.h"

#include <ATen/TensorIndexing.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bincount.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index.h>

#include <cstdint>

#include "common/status_macros.h"
#include "models/activation.h"

namespace ptq {

absl::StatusOr<GatedLinears> GatedLinearsOf(const BlockWeights& weights, int64_t expert) {
  GatedLinears linears;
  PTQ_ASSIGN_OR_RETURN(linears.gate, weights.LinearOf(TensorPart::kGate, expert));
  PTQ_ASSIGN_OR_RETURN(linears.up, weights.LinearOf(TensorPart::kUp, expert));
  PTQ_ASSIGN_OR_RETURN(linears.down, weights.LinearOf(TensorPart::kDown, expert));
  return linears;
}

at::Tensor ApplyGatedLinears(const GatedLinears& linears, Activation activation,
                             const at::Tensor& rows, const LinearFunction& apply) {
  const at::Tensor gate = Activate(activation, apply(linears.gate, rows));
  return apply(linears.down, gate * apply(linears.up, rows));
}

at::Tensor ApplyExperts(const std::vector<GatedLinears>& experts, Activation activation,
                        const at::Tensor& hidden, const Routing& routing,
                        const LinearFunction& apply) {
  const int64_t tokens = hidden.size(0);
  const int64_t per_token = routing.experts.size(1);
  const at::Tensor chosen = routing.experts.flatten();
  const at::Tensor order = chosen.argsort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
  const at::Tensor counts =
      at::bincount(chosen, /*weights=*/{}, static_cast<int64_t>(experts.size())).cpu();

  // A token's row is there once for each of its experts: through an expanded view, in whose
  // gradient each place is written once and then summed over the experts in their order, where that
  // of a plain gather would be summed by atomic additions.
  const at::Tensor rows = at::index(
      hidden.unsqueeze(1).expand({-1, per_token, -1}),
      {order.floor_divide(per_token), order.remainder(per_token)});  // [tokens · per_token, D]
  std::vector<at::Tensor> outputs;
  int64_t begin = 0;
  for (size_t expert = 0; expert < experts.size(); ++expert) {
    const int64_t count = counts.const_data_ptr<int64_t>()[expert];
    if (count == 0) continue;
    outputs.push_back(
        ApplyGatedLinears(experts[expert], activation, rows.narrow(0, begin, count), apply));
    begin += count;
  }

  const at::Tensor places =
      at::empty_like(order).scatter_(0, order, at::arange(order.size(0), order.options()));
  return (at::cat(outputs).index_select(0, places).view({tokens, per_token, -1}) *
          routing.weights.unsqueeze(-1))
      .sum(1)
      .to(hidden.scalar_type());
}

}  // namespace ptq
