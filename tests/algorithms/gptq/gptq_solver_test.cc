#include "algorithms/gptq/gptq_solver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "algorithms/rtn/full_range.h"
#include "algorithms/rtn/scale_search.h"
#include "tests/algorithms/tensor_literals.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::Matrix;
using testing::Random;
using testing::StatusIs;
using testing::Values;

const std::vector<double> kLadder = {0.01, 0.03, 0.1, 0.3, 1.0};

QuantizationScheme Scheme(int bits, int64_t group_size, bool symmetric = true) {
  return {.bits = bits, .group_size = group_size, .symmetric = symmetric};
}

// Inputs [n, K] whose columns are correlated and of different size.
at::Tensor CorrelatedInputs(int64_t tokens, int64_t columns, uint64_t seed) {
  const at::Tensor mix = Random({columns, columns}, seed) / std::sqrt(columns) + at::eye(columns);
  return Random({tokens, columns}, seed + 1).mm(mix) * Random({columns}, seed + 2).mul(.7).exp();
}

absl::StatusOr<std::optional<GptqFactor>> Factorize(const at::Tensor& hessian) {
  return FactorizeHessian(hessian, kLadder, CancellationToken());
}

at::Tensor Solve(const at::Tensor& weight, const QParams& qparams, const QuantizationScheme& scheme,
                 const at::Tensor& hessian, int64_t tile) {
  const auto factor = Factorize(hessian);
  TORCH_CHECK(factor.ok() && factor->has_value());
  const auto codes = SolveGptq(weight, qparams, scheme, **factor, tile, CancellationToken());
  TORCH_CHECK(codes.ok() && codes->has_value());
  return **codes;
}

at::Tensor Decode(const at::Tensor& codes, const QParams& qparams,
                  const QuantizationScheme& scheme) {
  const int64_t group = BlockSizeOf(scheme, codes.size(0), codes.size(1))[1];
  return (codes.to(at::kDouble) - qparams.zero_point.repeat_interleave(group, 1)) *
         qparams.scale.to(at::kDouble).repeat_interleave(group, 1);
}

// Optimal brain quantization of one row in float64 by its definition: the columns left are moved by
// the least-squares answer to each rounding, with the inverse of what is left of H taken anew each
// time. O(K^4), independent of any factorisation.
std::vector<double> ReferenceCodes(at::Tensor row, const at::Tensor& hessian,
                                   const std::vector<int64_t>& order, const at::Tensor& scale,
                                   const QuantizationScheme& scheme) {
  row = row.to(at::kDouble).clone();
  std::vector<double> codes(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    const at::Tensor left =
        at::tensor(std::vector<int64_t>(order.begin() + static_cast<int64_t>(i), order.end()));
    const at::Tensor inverse = hessian.index_select(0, left).index_select(1, left).inverse();
    const int64_t column = order[i];
    const double s = scale[column].item<double>();
    const double value = row[column].item<double>();
    const double code =
        std::clamp(std::nearbyint(value / s), static_cast<double>(scheme.quant_min()),
                   static_cast<double>(scheme.quant_max()));
    codes[static_cast<size_t>(column)] = code;
    const double step = (value - code * s) / inverse[0][0].item<double>();
    row.index_put_({left}, row.index_select(0, left) - step * inverse[0]);
  }
  return codes;
}

TEST(FactorizeHessianTest, FeedbackIsTheInversesNormalisedCholeskyFactor) {
  const at::Tensor inputs = CorrelatedInputs(64, 12, 1);
  const at::Tensor hessian = inputs.t().mm(inputs);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto factor, Factorize(hessian));
  ASSERT_TRUE(factor.has_value());
  EXPECT_EQ(factor->damping, 0.01);
  const at::Tensor diagonal = hessian.diagonal().index_select(0, factor->order);
  EXPECT_TRUE((diagonal.slice(0, 1) <= diagonal.slice(0, 0, -1)).all().item<bool>());
  // Uᵀ U = inverse(H) with U = D feedback, so feedback⁻ᵀ ... is checked without an inverse:
  // feedback H feedbackᵀ is diagonal.
  const at::Tensor damped =
      (hessian.to(at::kDouble) +
       at::eye(12, at::kDouble) * (0.01 * hessian.diagonal().to(at::kDouble).mean()))
          .index_select(0, factor->order)
          .index_select(1, factor->order);
  const at::Tensor feedback = factor->feedback.to(at::kDouble);
  EXPECT_TRUE(feedback.triu().equal(feedback));
  EXPECT_TRUE(feedback.diagonal().equal(at::ones({12}, at::kDouble)));
  const at::Tensor product = feedback.mm(damped).mm(feedback.t());
  const at::Tensor off = product - product.diagonal().diag();
  EXPECT_LT(off.abs().max().item<double>(), 1e-5 * damped.abs().max().item<double>());
}

TEST(FactorizeHessianTest, PiecesOfColumnsMakeOneFactor) {
  // More columns than one piece of the factorisation.
  const at::Tensor inputs = CorrelatedInputs(1500, 1100, 2);
  const at::Tensor hessian = inputs.t().mm(inputs);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto factor, Factorize(hessian));
  ASSERT_TRUE(factor.has_value());
  const at::Tensor wide = hessian.to(at::kDouble);
  const at::Tensor damped = (wide + at::eye(1100, at::kDouble) * (0.01 * wide.diagonal().mean()))
                                .index_select(0, factor->order)
                                .index_select(1, factor->order);
  const at::Tensor upper = at::linalg_cholesky(damped.inverse(), /*upper=*/true);
  const at::Tensor expected = upper / upper.diagonal().unsqueeze(1);
  EXPECT_LT((factor->feedback - expected).abs().max().item<double>(), 1e-5);
}

TEST(FactorizeHessianTest, ClimbsTheLadderForIndefiniteMatrices) {
  at::Tensor hessian = at::eye(8);
  hessian[0][0] = -0.2f;  // mean diagonal .85: positive from damping .3 on
  PTQ_ASSERT_OK_AND_ASSIGN(const auto factor, Factorize(hessian));
  ASSERT_TRUE(factor.has_value());
  EXPECT_EQ(factor->damping, 0.3);
}

TEST(FactorizeHessianTest, GivesUpOnHopelessMatrices) {
  at::Tensor indefinite = at::eye(4);
  indefinite[1][1] = -2;
  at::Tensor damaged = at::eye(4);
  damaged[2][1] = std::nan("");
  for (const at::Tensor& hessian : {indefinite, damaged, at::zeros({4, 4}),
                                    at::eye(4) * std::numeric_limits<float>::infinity()}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto factor, Factorize(hessian));
    EXPECT_FALSE(factor.has_value());
  }
}

TEST(FactorizeHessianTest, StopsWhenCancelled) {
  CancellationToken cancel;
  cancel.Cancel();
  EXPECT_THAT(FactorizeHessian(at::eye(4), kLadder, cancel),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr("")));
}

TEST(SolveGptqTest, LaterColumnsAbsorbEarlierErrors) {
  // Two equal inputs: what counts is the sum of both weights. 1.4 rounds to 1, and the other
  // column, told of the missing .4, rounds 1.3 + .4 to 2 instead of 1 (damping takes a little off
  // the .4).
  const at::Tensor hessian = Matrix(2, {1, 1, 1, 1});
  const QParams unit{at::ones({1, 1}, at::kHalf), at::zeros({1, 1}, at::kInt)};
  EXPECT_THAT(Values(Solve(Matrix(1, {1.4, 1.3}), unit, Scheme(4, 2), hessian, 128)),
              ElementsAre(1, 2));
}

TEST(SolveGptqTest, EqualsOptimalBrainQuantizationByDefinition) {
  const at::Tensor inputs = CorrelatedInputs(40, 16, 3);
  const at::Tensor hessian = inputs.t().mm(inputs);
  const at::Tensor weight = Random({6, 16}, 4);
  const QuantizationScheme scheme = Scheme(4, 8);
  const QParams qparams = SearchScales(weight, hessian.diagonal(), scheme);
  const at::Tensor codes = Solve(weight, qparams, scheme, hessian, 5);
  const at::Tensor wide = hessian.to(at::kDouble);
  const at::Tensor damped = wide + at::eye(16, at::kDouble) * (0.01 * wide.diagonal().mean());
  const at::Tensor order = at::argsort(hessian.diagonal(), true, 0, true);
  for (int64_t row = 0; row < 6; ++row) {
    EXPECT_EQ(
        Values(codes[row]),
        ReferenceCodes(weight[row], damped,
                       {order.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>() + 16},
                       qparams.scale[row].to(at::kDouble).repeat_interleave(8), scheme))
        << row;
  }
}

TEST(SolveGptqTest, IdentityHessianIsPlainRounding) {
  for (const bool symmetric : {true, false}) {
    for (const int64_t group_size :
         {int64_t{32}, QuantizationScheme::kPerChannel, QuantizationScheme::kPerTensor}) {
      SCOPED_TRACE(::testing::Message() << symmetric << " " << group_size);
      const QuantizationScheme scheme = Scheme(4, group_size, symmetric);
      const at::Tensor weight = Random({9, 96}, 5);
      const QParams qparams = SearchScales(weight, at::ones({96}), scheme);
      EXPECT_TRUE(Solve(weight, qparams, scheme, at::eye(96) * 7, 40)
                      .equal(RoundToCodes(weight, qparams, scheme)));
    }
  }
}

TEST(SolveGptqTest, OutputErrorIsWellBelowRounding) {
  for (const bool symmetric : {true, false}) {
    for (const int bits : {2, 3, 4}) {
      SCOPED_TRACE(::testing::Message() << bits << " bits, symmetric " << symmetric);
      const at::Tensor inputs = CorrelatedInputs(512, 128, 6);
      const at::Tensor hessian = inputs.t().mm(inputs);
      const at::Tensor weight = Random({48, 128}, 7);
      const QuantizationScheme scheme = Scheme(bits, 32, symmetric);
      const QParams qparams = SearchScales(weight, hessian.diagonal(), scheme);
      const auto output_error = [&](const at::Tensor& codes) {
        return inputs.to(at::kDouble)
            .mm((Decode(codes, qparams, scheme) - weight).t())
            .square()
            .mean()
            .item<double>();
      };
      EXPECT_LT(output_error(Solve(weight, qparams, scheme, hessian, 128)),
                0.7 * output_error(RoundToCodes(weight, qparams, scheme)));
    }
  }
}

TEST(SolveGptqTest, TileSizeHardlyMattersAndRunsRepeat) {
  const at::Tensor inputs = CorrelatedInputs(512, 128, 8);
  const at::Tensor hessian = inputs.t().mm(inputs);
  const at::Tensor weight = Random({48, 128}, 9);
  const QuantizationScheme scheme = Scheme(4, 32);
  const QParams qparams = SearchScales(weight, hessian.diagonal(), scheme);
  const at::Tensor whole = Solve(weight, qparams, scheme, hessian, 128);
  EXPECT_TRUE(Solve(weight, qparams, scheme, hessian, 128).equal(whole));
  // Sums in another order flip a code where a value sits on a tie, and what follows from it.
  EXPECT_GT(
      (Solve(weight, qparams, scheme, hessian, 24) == whole).to(at::kFloat).mean().item<float>(),
      0.97f);
}

TEST(SolveGptqTest, DeadColumnsAreRoundedToNearest) {
  at::Tensor inputs = CorrelatedInputs(256, 64, 10);
  inputs.narrow(1, 20, 3).zero_();
  const at::Tensor hessian = inputs.t().mm(inputs);
  const at::Tensor weight = Random({8, 64}, 11);
  const QuantizationScheme scheme = Scheme(4, 32);
  const QParams qparams = SearchScales(weight, hessian.diagonal(), scheme);
  EXPECT_TRUE(Solve(weight, qparams, scheme, hessian, 128)
                  .narrow(1, 20, 3)
                  .equal(RoundToCodes(weight, qparams, scheme).narrow(1, 20, 3)));
}

TEST(SolveGptqTest, ReportsErrorsThatAreNotFinite) {
  PTQ_ASSERT_OK_AND_ASSIGN(auto factor, Factorize(at::eye(4)));
  factor->feedback[0][3] = std::numeric_limits<float>::infinity();
  const QParams unit{at::ones({1, 1}, at::kHalf), at::zeros({1, 1}, at::kInt)};
  PTQ_ASSERT_OK_AND_ASSIGN(
      const auto codes,
      SolveGptq(Matrix(1, {.3, .3, .3, .3}), unit, Scheme(4, 4), *factor, 2, CancellationToken()));
  EXPECT_FALSE(codes.has_value());
}

}  // namespace
}  // namespace ptq
