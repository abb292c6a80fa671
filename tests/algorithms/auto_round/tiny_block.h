// A gated MLP with a skip connection as a decoder block, and calibration data for it: small enough
// to tune in milliseconds, on any device.
#ifndef PTQ_TESTS_ALGORITHMS_AUTO_ROUND_TINY_BLOCK_H_
#define PTQ_TESTS_ALGORITHMS_AUTO_ROUND_TINY_BLOCK_H_

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <optional>
#include <string>
#include <vector>

#include "algorithms/block_quantizer.h"
#include "models/decoder_block.h"
#include "observers/block_inputs.h"
#include "observers/linear_observer.h"
#include "observers/observed_block.h"

namespace ptq::testing {

class TinyBlock final : public DecoderBlock {
 public:
  enum Projection : size_t { kGate, kUp, kDown };

  // Weights are bfloat16 values in `dtype`; up_proj has a bias.
  TinyBlock(int64_t width, int64_t inner, at::Device device, at::ScalarType dtype)
      : name_("model.layers.7") {
    const auto make = [&](std::vector<int64_t> shape, double scale) {
      return at::randn(shape).mul_(scale).to(at::kBFloat16).to(dtype).to(device);
    };
    linears_.push_back({name_ + ".mlp.gate_proj", make({inner, width}, 0.2), {}});
    linears_.push_back({name_ + ".mlp.up_proj", make({inner, width}, 0.2), make({inner}, 0.1)});
    linears_.push_back({name_ + ".mlp.down_proj", make({width, inner}, 0.2), {}});
  }

  const std::string& name() const override { return name_; }
  const std::vector<Linear>& linears() const override { return linears_; }
  std::vector<Linear>& mutable_linears() override { return linears_; }
  std::optional<GatedBlockParts> gated_parts(int64_t) const override { return std::nullopt; }

 private:
  at::Tensor ForwardByTensors(const at::Tensor& hidden, const RotaryTable&,
                              const LinearFunction& apply) const override {
    const at::Tensor gate = at::silu(apply(kGate, hidden));
    return hidden + apply(kDown, gate * apply(kUp, hidden));
  }

  std::string name_;
  std::vector<Linear> linears_;
};

// The block with everything that a BlockQuantizer asks for. Not movable: the parts point to each
// other.
struct TinyCase {
  explicit TinyCase(at::Device device = at::kCPU, at::ScalarType dtype = at::kFloat,
                    int64_t samples = 16, int64_t length = 12, int64_t width = 32,
                    int64_t inner = 64)
      : block((at::manual_seed(3), width), inner, device, dtype) {
    const at::NoGradGuard no_grad;
    inputs.full_precision = at::randn({samples, length, width}).to(dtype).to(device);
    inputs.quantized =
        inputs.full_precision + at::randn({samples, length, width}).mul_(0.01).to(dtype).to(device);
    inputs.token_mask = LastPositionMask(samples, length, device);
    observed.block = &block;
    observed.rotary = &rotary;
    observed.inputs = &inputs;
    observed.targets = block.Forward(inputs.full_precision, rotary).contiguous();
    LinearObserver observer(block);
    block.Forward(inputs.quantized, rotary, observer.Observe());
    observed.statistics = observer.Finish();
    QuantizationScheme scheme;
    scheme.bits = 3;
    scheme.group_size = 16;
    schemes.assign(block.linears().size(), scheme);
  }
  TinyCase(const TinyCase&) = delete;
  TinyCase& operator=(const TinyCase&) = delete;

  BlockQuantizationRequest Request() { return {observed, schemes, seed, cancel, progress}; }

  // Reconstruction error over unmasked tokens with the given weights (undefined: the block's own).
  double Loss(const std::vector<at::Tensor>& weights) const {
    const at::NoGradGuard no_grad;
    const at::Tensor output =
        block.Forward(inputs.quantized, rotary, [&](size_t index, const at::Tensor& input) {
          const Linear& linear = block.linears()[index];
          return ApplyLinear(linear, weights[index].defined() ? weights[index] : linear.weight,
                             input);
        });
    const at::Tensor mask = inputs.token_mask.unsqueeze(-1);
    const at::Tensor error =
        (output.to(at::kDouble) - observed.targets.to(at::kDouble)).square() * mask;
    return error.sum().item<double>() /
           (mask.sum().item<double>() * static_cast<double>(output.size(-1)));
  }
  double Loss(const QuantizedBlock& quantized) const {
    std::vector<at::Tensor> weights(block.linears().size());
    for (size_t i = 0; i < weights.size(); ++i) {
      if (quantized.linears[i].has_value()) {
        weights[i] = Dequantize(quantized.linears[i]->weight, at::kBFloat16)
                         .to(block.linears()[i].weight.options());
      }
    }
    return Loss(weights);
  }

  TinyBlock block;
  RotaryTable rotary;
  BlockInputs inputs;
  ObservedBlock observed;
  std::vector<std::optional<QuantizationScheme>> schemes;
  uint64_t seed = 42;
  CancellationToken cancel;
  std::function<void(double)> progress;
};

inline bool SameRecords(const QuantizedBlock& a, const QuantizedBlock& b) {
  bool same = a.linears.size() == b.linears.size();
  for (size_t i = 0; same && i < a.linears.size(); ++i) {
    same = a.linears[i].has_value() == b.linears[i].has_value();
    if (same && a.linears[i].has_value()) {
      const AffineQuantizedTensor& x = a.linears[i]->weight;
      const AffineQuantizedTensor& y = b.linears[i]->weight;
      same = at::equal(x.int_data, y.int_data) && at::equal(x.scale, y.scale) &&
             at::equal(x.zero_point, y.zero_point);
    }
  }
  return same;
}

}  // namespace ptq::testing

#endif  // PTQ_TESTS_ALGORITHMS_AUTO_ROUND_TINY_BLOCK_H_
