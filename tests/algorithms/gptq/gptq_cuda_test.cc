// GPTQ on a device: Hessians against float64, the factor and the solver against the host's. Needs
// an NVIDIA GPU: label gpu.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "algorithms/cuda/cuda_runtime.h"
#include "algorithms/gptq/gptq.h"
#include "algorithms/gptq/gptq_solver.h"
#include "algorithms/rtn/scale_search.h"
#include "observers/linear_observer.h"
#include "tests/algorithms/observed_linear.h"
#include "tests/algorithms/tensor_literals.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::ObservedLinears;
using testing::Random;

const std::vector<double> kLadder = {0.01, 0.03, 0.1, 0.3, 1.0};

// Inputs [n, K] whose columns are correlated and of different size.
at::Tensor CorrelatedInputs(int64_t tokens, int64_t columns, uint64_t seed) {
  const at::Tensor mix = Random({columns, columns}, seed) / std::sqrt(columns) + at::eye(columns);
  return Random({tokens, columns}, seed + 1).mm(mix) * Random({columns}, seed + 2).mul(.7).exp();
}

GptqFactor Factorize(const at::Tensor& hessian) {
  const auto factor = FactorizeHessian(hessian, kLadder, CancellationToken());
  TORCH_CHECK(factor.ok() && factor->has_value());
  return **factor;
}

// undefined: something was not finite.
at::Tensor Solve(const at::Tensor& weight, const QParams& qparams, const QuantizationScheme& scheme,
                 const GptqFactor& factor, int64_t tile, at::Device device) {
  const auto codes =
      SolveGptq(weight.to(device), {qparams.scale.to(device), qparams.zero_point.to(device)},
                scheme, {factor.order.to(device), factor.feedback.to(device), factor.damping}, tile,
                CancellationToken());
  TORCH_CHECK(codes.ok(), codes.status().ToString());
  if (!codes->has_value()) return {};
  TORCH_CHECK((*codes)->is_contiguous() && (*codes)->device().type() == device.type());
  return (*codes)->cpu();
}

double EqualShare(const at::Tensor& left, const at::Tensor& right) {
  return (left.cpu() == right.cpu()).to(at::kDouble).mean().item<double>();
}

class CudaGptqTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_THAT(LoadCuda(), IsOk()); }
};

// Bits, group size, symmetric, columns of a tile.
class CudaGptqSolverTest
    : public ::testing::TestWithParam<std::tuple<int, int64_t, bool, int64_t>> {
 protected:
  void SetUp() override { ASSERT_THAT(LoadCuda(), IsOk()); }

  QuantizationScheme scheme() const {
    const auto [bits, group_size, symmetric, tile] = GetParam();
    return {.bits = bits, .group_size = group_size, .symmetric = symmetric};
  }
  int64_t tile() const { return std::get<3>(GetParam()); }
  // More columns than three tiles, the last one ragged where groups allow it.
  int64_t columns() const { return scheme().group_size == 128 ? 384 : 416; }
};

// Numbers of few bits, whose sums are exact in any order: weights in 64ths, powers of two as
// scales, whole feedback, little of it so that no error grows.
TEST_P(CudaGptqSolverTest, GivesTheHostsCodesWhereSumsAreExact) {
  constexpr int64_t kRows = 301;
  const auto [b0, b1] = BlockSizeOf(scheme(), kRows, columns());
  const at::Tensor weight = Random({kRows, columns()}, 1).mul(48).round_().clamp_(-128, 128) / 64;
  const at::Tensor wide = Random({kRows / b0, columns() / b1}, 2);
  const QParams qparams{
      (at::exp2(wide.mul(.7).round_().clamp_(-2, 1)) / 4 * wide.sign()).to(at::kHalf),
      scheme().symmetric ? at::zeros(wide.sizes(), at::kInt)
                         : wide.mul(-1.5).round_().clamp_(-2, 1).to(at::kInt)};
  const at::Tensor chance = Random({columns(), columns()}, 3);
  const GptqFactor factor{Random({columns()}, 4).argsort(),
                          at::eye(columns()) + (chance.sign() * chance.abs().gt(2.8)).triu(1), 0};
  const at::Tensor host = Solve(weight, qparams, scheme(), factor, tile(), at::kCPU);
  const at::Tensor device = Solve(weight, qparams, scheme(), factor, tile(), at::kCUDA);
  ASSERT_TRUE(host.defined() && device.defined());
  EXPECT_LT(EqualShare(host, Solve(weight, qparams, scheme(), {factor.order, at::eye(columns()), 0},
                                   tile(), at::kCPU)),
            0.99);  // the feedback does change codes
  EXPECT_TRUE(device.equal(host)) << EqualShare(device, host) << " of the codes are equal";
}

// Sums in another order flip a code where a value sits on a tie, and what follows from it in that
// row. At 8 bits there are more ties to sit on.
TEST_P(CudaGptqSolverTest, AgreesWithTheHostButForTies) {
  const at::Tensor inputs = CorrelatedInputs(1024, columns(), 5);
  const GptqFactor factor = Factorize(inputs.t().mm(inputs));
  const at::Tensor weight = Random({301, columns()}, 8);
  const QParams qparams = SearchScales(weight, at::ones({columns()}), scheme());
  const at::Tensor host = Solve(weight, qparams, scheme(), factor, tile(), at::kCPU);
  const at::Tensor device = Solve(weight, qparams, scheme(), factor, tile(), at::kCUDA);
  RecordProperty("differing codes", static_cast<int>((host != device).sum().item<int64_t>()));
  EXPECT_GT(EqualShare(device, host), scheme().bits == 8 ? 0.97 : 0.995);
  EXPECT_TRUE(device.equal(Solve(weight, qparams, scheme(), factor, tile(), at::kCUDA)));
}

INSTANTIATE_TEST_SUITE_P(Schemes, CudaGptqSolverTest,
                         ::testing::Combine(::testing::Values(2, 4, 8),
                                            ::testing::Values(32, 128,
                                                              QuantizationScheme::kPerChannel,
                                                              QuantizationScheme::kPerTensor),
                                            ::testing::Bool(), ::testing::Values(128, 100, 24)));

TEST_F(CudaGptqTest, SolverReportsErrorsThatAreNotFinite) {
  GptqFactor factor = Factorize(at::eye(64));
  factor.feedback[0][40] = std::numeric_limits<float>::infinity();
  const QuantizationScheme scheme{.bits = 4, .group_size = 64};
  const QParams unit{at::ones({70, 1}, at::kHalf), at::zeros({70, 1}, at::kInt)};
  at::Tensor weight = at::zeros({70, 64});
  EXPECT_FALSE(Solve(weight, unit, scheme, factor, 128, at::kCUDA).defined());  // 0 · inf
  factor.feedback[0][40] = 1;
  EXPECT_TRUE(Solve(weight, unit, scheme, factor, 128, at::kCUDA).defined());
  weight[69][63] = std::nanf("");
  EXPECT_FALSE(Solve(weight, unit, scheme, factor, 128, at::kCUDA).defined());
}

TEST_F(CudaGptqTest, FactorEqualsTheHosts) {
  // More columns than one piece of the factorisation.
  const at::Tensor inputs = CorrelatedInputs(2600, 2500, 9);
  const at::Tensor hessian = inputs.t().mm(inputs);
  const GptqFactor host = Factorize(hessian);
  const GptqFactor device = Factorize(hessian.cuda());
  EXPECT_TRUE(device.order.cpu().equal(host.order));
  EXPECT_TRUE(device.feedback.is_cuda());
  EXPECT_EQ(device.damping, host.damping);
  EXPECT_LT((device.feedback.cpu() - host.feedback).abs().max().item<double>(), 1e-6);
}

TEST_F(CudaGptqTest, HopelessHessiansHaveNoFactor) {
  at::Tensor indefinite = at::eye(64);
  indefinite[1][1] = -5;
  at::Tensor damaged = at::eye(64);
  damaged[2][1] = std::nanf("");
  for (const at::Tensor& hessian : {indefinite, damaged, at::zeros({64, 64})}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto factor,
                             FactorizeHessian(hessian.cuda(), kLadder, CancellationToken()));
    EXPECT_FALSE(factor.has_value());
  }
}

TEST_F(CudaGptqTest, LayersOfOneHessianAreSolvedTogetherToTheSameCodes) {
  const at::Tensor inputs = CorrelatedInputs(512, 256, 12);
  const at::Tensor hessian = inputs.t().mm(inputs).cuda();
  const LinearStatistics shared{
      .hessian = hessian, .importance = hessian.diagonal().clone(), .tokens = 512};
  for (const int64_t group_size : {int64_t{32}, QuantizationScheme::kPerTensor}) {
    const QuantizationScheme scheme{.bits = 4, .group_size = group_size};
    const QuantizationScheme wide{.bits = 8, .group_size = group_size};
    GptqBlockQuantizer gptq(at::kFloat, {});
    ObservedLinears together;
    ObservedLinears apart;
    for (const uint64_t seed : {13, 14, 15, 16}) {
      const at::Tensor weight =
          Random({static_cast<int64_t>(40 + seed), 256}, seed).cuda().to(at::kBFloat16);
      const QuantizationScheme own = seed == 15 ? wide : scheme;  // ends a run
      together.AddWithStatistics("proj", weight, own, shared);
      LinearStatistics copy = shared;
      copy.hessian = hessian.clone();
      apart.AddWithStatistics("proj", weight, own, copy);
    }
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock first, together.Quantize(gptq));
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock second, apart.Quantize(gptq));
    EXPECT_THAT(together.fractions, ::testing::ElementsAre(0.5, 0.75, 1));
    for (size_t i = 0; i < 4; ++i) {
      const AffineQuantizedTensor& record = first.linears[i]->weight;
      EXPECT_EQ(first.linears[i]->fallback_reason, "");
      EXPECT_TRUE(record.scale.equal(second.linears[i]->weight.scale));
      EXPECT_GT(EqualShare(record.int_data, second.linears[i]->weight.int_data), 0.99);
    }
  }
}

TEST_F(CudaGptqTest, OneLayersOverflowIsNotTheOthers) {
  // An error of column 5 goes to column 9 almost tenfold.
  at::Tensor hessian = at::eye(64);
  hessian[5][5] = 100;
  hessian[5][9] = hessian[9][5] = 9.9f;
  hessian = hessian.cuda();
  const LinearStatistics shared{
      .hessian = hessian, .importance = hessian.diagonal().clone(), .tokens = 100};
  ObservedLinears linears;
  for (const uint64_t seed : {17, 18, 19}) {
    at::Tensor weight = Random({16, 64}, seed);
    if (seed == 18) weight[3][5] = 3e38f;  // far above float16 scales: all error
    linears.AddWithStatistics("proj", weight.cuda(), QuantizationScheme{.group_size = 32}, shared);
  }
  GptqBlockQuantizer gptq(at::kFloat, {});
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock block, linears.Quantize(gptq));
  EXPECT_EQ(block.linears[0]->fallback_reason, "");
  EXPECT_THAT(block.linears[1]->fallback_reason, HasSubstr("not finite while solving: opt-rtn"));
  EXPECT_EQ(block.linears[2]->fallback_reason, "");
}

TEST_F(CudaGptqTest, HessiansOf16BitInputsHaveFloat32Sums) {
  // Three panels of columns, the last one narrower.
  constexpr int64_t kColumns = 2500;
  testing::LinearsOnlyBlock block;
  block.mutable_linears().push_back({"proj", at::zeros({8, kColumns}), {}});
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf, at::kFloat}) {
    const at::Tensor inputs =
        (Random({3, 700, kColumns}, 20) * Random({kColumns}, 21).exp()).cuda().to(dtype);
    const auto observe = [&] {
      LinearObserver observer(block, /*hessians=*/true);
      observer.Record(0, inputs.narrow(0, 0, 2));
      observer.Record(0, inputs.narrow(0, 2, 1));
      return observer.Finish()[0];
    };
    const LinearStatistics found = observe();
    EXPECT_EQ(found.tokens, 2100);
    EXPECT_EQ(found.hessian.scalar_type(), at::kFloat);
    const at::Tensor rows = inputs.flatten(0, 1).to(at::kDouble);
    const at::Tensor expected = rows.t().mm(rows);
    const at::Tensor size = expected.diagonal().sqrt();
    // Sums of 2100 products, 6e-6 off on an H200; results of 16 bits would be 5e-4 to 4e-3 off.
    EXPECT_LT(((found.hessian - expected) / at::outer(size, size)).abs().max().item<double>(), 2e-5)
        << dtype;
    EXPECT_TRUE(found.hessian.equal(found.hessian.t()));
    EXPECT_TRUE(found.importance.equal(found.hessian.diagonal()));
    EXPECT_TRUE(observe().hessian.equal(found.hessian));
  }
}

}  // namespace
}  // namespace ptq
