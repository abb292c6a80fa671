// A block that is nothing but its linear layers, with the statistics that an observer would give.
#ifndef PTQ_TESTS_ALGORITHMS_OBSERVED_LINEAR_H_
#define PTQ_TESTS_ALGORITHMS_OBSERVED_LINEAR_H_

#include <ATen/ATen.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "algorithms/block_quantizer.h"
#include "common/cancellation.h"
#include "observers/observed_block.h"

namespace ptq::testing {

class LinearsOnlyBlock final : public DecoderBlock {
 public:
  const std::string& name() const override { return name_; }
  const std::vector<Linear>& linears() const override { return linears_; }
  std::vector<Linear>& mutable_linears() override { return linears_; }
  std::optional<GatedBlockParts> gated_parts(int64_t) const override { return std::nullopt; }

 private:
  at::Tensor ForwardByTensors(const at::Tensor& hidden, const RotaryTable&,
                              const LinearFunction& apply) const override {
    return apply(0, hidden);
  }

  std::string name_ = "model.layers.0";
  std::vector<Linear> linears_;
};

// One block's worth of input for a BlockQuantizer.
class ObservedLinears {
 public:
  // Adds a layer that saw `inputs` [n, K]; undefined: a layer without statistics.
  void Add(const std::string& module, const at::Tensor& weight, const QuantizationScheme& scheme,
           const at::Tensor& inputs = {}) {
    LinearStatistics statistics;
    if (inputs.defined()) {
      statistics.hessian = inputs.t().mm(inputs);
      statistics.importance = statistics.hessian.diagonal().clone();
      statistics.tokens = inputs.size(0);
    }
    AddWithStatistics(module, weight, scheme, statistics);
  }
  void AddWithStatistics(const std::string& module, const at::Tensor& weight,
                         const std::optional<QuantizationScheme>& scheme,
                         const LinearStatistics& statistics) {
    block_.mutable_linears().push_back({module, weight, {}});
    schemes_.push_back(scheme);
    observed_.statistics.push_back(statistics);
  }

  absl::StatusOr<QuantizedBlock> Quantize(BlockQuantizer& quantizer) {
    observed_.block = &block_;
    return quantizer.QuantizeBlock(
        {.observed = observed_,
         .schemes = schemes_,
         .cancel = cancel,
         .progress = [this](double fraction) { fractions.push_back(fraction); }});
  }

  LinearsOnlyBlock& block() { return block_; }
  ObservedBlock& observed() { return observed_; }

  CancellationToken cancel;
  std::vector<double> fractions;  // what progress reported

 private:
  LinearsOnlyBlock block_;
  ObservedBlock observed_;
  std::vector<std::optional<QuantizationScheme>> schemes_;
};

}  // namespace ptq::testing

#endif  // PTQ_TESTS_ALGORITHMS_OBSERVED_LINEAR_H_
