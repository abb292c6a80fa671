// A block that is nothing but routed experts, each token going to the one that its states name: for
// tests of what sees few tokens or none.
#ifndef PTQ_TESTS_TESTING_ROUTED_BLOCK_H_
#define PTQ_TESTS_TESTING_ROUTED_BLOCK_H_

#include <ATen/ATen.h>

#include <optional>
#include <string>
#include <vector>

#include "models/decoder_block.h"
#include "models/experts.h"

namespace ptq::testing {

class RoutedBlock final : public DecoderBlock {
 public:
  static constexpr int64_t kExperts = 4;
  static constexpr int64_t kWidth = 32;
  static constexpr int64_t kInner = 32;

  // Random bfloat16 values in float32.
  RoutedBlock() {
    for (int64_t expert = 0; expert < kExperts; ++expert) {
      const std::string module = name_ + ".mlp.experts." + std::to_string(expert);
      const size_t first = linears_.size();
      for (const char* projection : {".gate_proj", ".up_proj", ".down_proj"}) {
        const at::Tensor weight = at::randn({kWidth, kInner}) * 0.2;
        linears_.push_back({module + projection, weight.to(at::kBFloat16).to(at::kFloat), {}});
      }
      experts_.push_back({first, first + 1, first + 2});
    }
    // The first coordinates are the experts' scores.
    router_ = 4 * at::eye(kExperts, kWidth);
  }

  // [samples, T, kWidth]: the tokens of sample s go to expert experts[s].
  static at::Tensor Hidden(const std::vector<int64_t>& experts, int64_t length) {
    const auto samples = static_cast<int64_t>(experts.size());
    at::Tensor hidden = at::randn({samples, length, kWidth});
    hidden.narrow(2, 0, kExperts).zero_();
    for (int64_t sample = 0; sample < samples; ++sample) {
      hidden.select(0, sample).select(1, experts[static_cast<size_t>(sample)]).fill_(2);
    }
    return hidden;
  }

  const std::string& name() const override { return name_; }
  const std::vector<Linear>& linears() const override { return linears_; }
  std::vector<Linear>& mutable_linears() override { return linears_; }
  std::optional<GatedBlockParts> gated_parts(int64_t) const override { return std::nullopt; }

 private:
  at::Tensor ForwardByTensors(const at::Tensor& hidden, const RotaryTable&,
                              const LinearFunction& apply) const override {
    const at::Tensor rows = hidden.flatten(0, 1);
    const Routing routing =
        RouteTokens({.experts = kExperts, .experts_per_token = 1}, rows, router_, {});
    return hidden +
           ApplyExperts(experts_, Activation::kSilu, rows, routing, apply).view(hidden.sizes());
  }

  std::string name_ = "model.layers.0";
  std::vector<Linear> linears_;
  std::vector<GatedLinears> experts_;
  at::Tensor router_;
};

}  // namespace ptq::testing

#endif  // PTQ_TESTS_TESTING_ROUTED_BLOCK_H_
