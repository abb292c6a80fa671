// Attention against a softmax over explicit scores in float64, forward and backward.
#include "models/causal_attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace ptq {
namespace {

constexpr int64_t kLength = 11;
constexpr int64_t kHeads = 4;
constexpr int64_t kKeyHeads = 2;
constexpr int64_t kDim = 6;
constexpr int64_t kValueDim = 5;

at::Tensor Oracle(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                  const CausalAttentionOptions& options) {
  std::vector<at::Tensor> outputs;
  const double scale = options.scale.value_or(1 / std::sqrt(kDim));
  for (int64_t head = 0; head < kHeads; ++head) {
    const int64_t shared = head / (kHeads / kKeyHeads);
    for (int64_t row = 0; row < kLength; ++row) {
      const int64_t first = options.window > 0 ? std::max<int64_t>(0, row - options.window + 1) : 0;
      const auto seen = [&](const at::Tensor& states) {
        return states.select(2, shared).narrow(1, first, row - first + 1);
      };
      at::Tensor scores = (seen(key) * query.select(2, head).narrow(1, row, 1)).sum(-1) * scale;
      if (options.soft_cap > 0) scores = options.soft_cap * (scores / options.soft_cap).tanh();
      outputs.push_back((scores.softmax(-1).unsqueeze(-1) * seen(value)).sum(1));
    }
  }
  return at::stack(outputs, 1).view({-1, kHeads, kLength, kValueDim}).transpose(1, 2).flatten(2);
}

TEST(CausalAttentionTest, ValuesAndGradientsAreThoseOfTheFormula) {
  const std::vector<CausalAttentionOptions> cases = {{},
                                                     {.scale = 0.9},
                                                     {.window = 4},
                                                     {.window = kLength},
                                                     {.window = 1},
                                                     {.soft_cap = 1.5},
                                                     {.scale = 0.7, .soft_cap = 0.8, .window = 3}};
  for (const CausalAttentionOptions& options : cases) {
    SCOPED_TRACE(::testing::Message()
                 << options.scale.value_or(0) << " " << options.soft_cap << " " << options.window);
    at::manual_seed(3);
    std::vector<at::Tensor> inputs = {at::randn({2, kLength, kHeads, kDim}) * 2,
                                      at::randn({2, kLength, kKeyHeads, kDim}),
                                      at::randn({2, kLength, kKeyHeads, kValueDim})};
    const at::Tensor direction = at::randn({2, kLength, kHeads * kValueDim});
    std::vector<at::Tensor> wide;
    for (at::Tensor& input : inputs) {
      wide.push_back(input.to(at::kDouble).requires_grad_());
      input.requires_grad_();
    }
    const at::Tensor output = CausalAttention(inputs[0], inputs[1], inputs[2], options);
    const at::Tensor expected = Oracle(wide[0], wide[1], wide[2], options);
    EXPECT_LT((output - expected).abs().max().item<double>(), 1e-5);
    (output * direction).sum().backward();
    (expected * direction).sum().backward();
    for (size_t i = 0; i < inputs.size(); ++i) {
      EXPECT_LT((inputs[i].grad() - wide[i].grad()).abs().max().item<double>(), 1e-5) << i;
    }
  }
}

}  // namespace
}  // namespace ptq
