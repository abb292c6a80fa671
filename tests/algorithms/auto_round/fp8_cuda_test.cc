// FP8 operands against their values, products against the same products of decoded operands, and a
// whole pass against float32. Needs a Hopper GPU (skipped on others): label gpu.
#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include "algorithms/auto_round/fp8.h"
#include "algorithms/cuda/device_kernels.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::ptq::testing::IsOk;

class Fp8Test : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_THAT(LoadCuda(), IsOk());
    if (!HasFp8Products()) GTEST_SKIP() << "needs compute capability 9.0";
    at::manual_seed(2);
  }
};

at::Tensor RandomValues(int64_t rows, int64_t columns) {
  // Magnitudes over four orders, as gradients have.
  return (at::randn({rows, columns}) * at::exp(2 * at::randn({rows, columns})))
      .to(at::kBFloat16)
      .cuda();
}

at::Tensor Decode(const Fp8Operand& operand, bool tiles) {
  const int64_t n = operand.values.size(0);
  const int64_t k = operand.values.size(1);
  at::Tensor scale = operand.scale.repeat_interleave(128, 1);
  if (tiles) scale = scale.repeat_interleave(128, 0);
  EXPECT_EQ(scale.sizes(), at::IntArrayRef({n, k}));
  return operand.values.to(at::kFloat) * scale;
}

// Each value within half a unit in the last place, or of the smallest step of its block.
void ExpectNear(const at::Tensor& decoded, const at::Tensor& values, const at::Tensor& largest) {
  const at::Tensor exact = values.to(at::kFloat);
  const at::Tensor allowed = at::maximum(exact.abs() / 16, largest / 448 / 1024) * 1.001;
  EXPECT_TRUE(((decoded - exact).abs() <= allowed).all().item<bool>());
}

TEST_F(Fp8Test, LayoutsHoldTheValues) {
  at::Tensor values = RandomValues(256, 384);
  values.narrow(0, 128, 128).narrow(1, 0, 128).zero_();  // a tile without a value
  for (const bool tiles : {false, true}) {
    const Fp8Layouts layouts =
        MakeFp8Layouts(values, {.wide = true, .rows = true, .columns = true, .tile_scales = tiles});
    EXPECT_TRUE(layouts.wide.is_same(values));
    const at::Tensor blocks = values.to(at::kFloat).abs();
    const at::Tensor by_row =
        std::get<0>(blocks.view({256, 3, 128}).max(-1)).repeat_interleave(128, 1);
    ExpectNear(Decode(layouts.rows, false), values, by_row);
    at::Tensor by_column = std::get<0>(blocks.view({2, 128, 384}).max(1)).repeat_interleave(128, 0);
    if (tiles) {
      by_column = std::get<0>(by_column.view({256, 3, 128}).max(-1)).repeat_interleave(128, 1);
    }
    ExpectNear(Decode(layouts.columns, tiles), values.t(), by_column.t());
  }
}

TEST_F(Fp8Test, GatedSourcesAreTheGatedActivation) {
  const at::Tensor gate_up = at::randn({128, 512}).to(at::kBFloat16).cuda();
  const at::Tensor gradient = at::randn({128, 256}).to(at::kBFloat16).cuda();
  at::Tensor leaf = gate_up.to(at::kFloat).set_requires_grad(true);
  const at::Tensor hidden = at::silu(leaf.narrow(1, 0, 256)) * leaf.narrow(1, 256, 256);
  hidden.backward(gradient.to(at::kFloat));
  const Fp8Layouts forward = MakeFp8Layouts({.source = Fp8Source::kGated,
                                             .gate_up = gate_up.const_data_ptr(),
                                             .rows = 128,
                                             .columns = 256},
                                            {.wide = true, .rows = true, .columns = true}, gate_up);
  const Fp8Layouts backward =
      MakeFp8Layouts({.source = Fp8Source::kGatedBackward,
                      .gate_up = gate_up.const_data_ptr(),
                      .hidden_gradient = gradient.const_data_ptr(),
                      .rows = 128,
                      .columns = 512},
                     {.wide = true, .rows = true, .columns = true}, gate_up);
  const auto expect_close = [](const Fp8Layouts& layouts, const at::Tensor& expected) {
    EXPECT_TRUE(at::allclose(layouts.wide.to(at::kFloat), expected, 1e-2, 1e-2));
    EXPECT_TRUE(at::allclose(Decode(layouts.rows, false), expected, 7e-2, 2e-2));
    EXPECT_TRUE(at::allclose(Decode(layouts.columns, false), expected.t(), 7e-2, 2e-2));
  };
  expect_close(forward, hidden.detach());
  expect_close(backward, leaf.grad());
}

TEST_F(Fp8Test, ProductsAreThoseOfTheDecodedOperands) {
  const Fp8Layouts a = MakeFp8Layouts(RandomValues(512, 256), {.rows = true, .columns = true});
  for (const bool tiles : {false, true}) {
    // [512, 256] · [128, 256]ᵀ and its transposed kin [256, 512] · [384, 512]ᵀ.
    const Fp8Layouts b =
        MakeFp8Layouts(RandomValues(512, 384), {.columns = true, .tile_scales = tiles});
    ASSERT_TRUE(IsFp8Product(256, 384, 512));
    const at::Tensor exact = at::mm(Decode(a.columns, false).to(at::kDouble),
                                    Decode(b.columns, tiles).to(at::kDouble).t());
    const at::Tensor actual = Fp8Product(a.columns, b.columns);
    EXPECT_LT(((actual - exact).norm() / exact.norm()).item<double>(), 4e-3) << tiles;
    EXPECT_TRUE(Fp8Product(a.columns, b.columns).equal(actual)) << "the same bits again";
  }
  const Fp8Layouts c = MakeFp8Layouts(RandomValues(128, 256), {.rows = true});
  const at::Tensor exact =
      at::mm(Decode(a.rows, false).to(at::kDouble), Decode(c.rows, false).to(at::kDouble).t());
  EXPECT_LT(((Fp8Product(a.rows, c.rows) - exact).norm() / exact.norm()).item<double>(), 4e-3);
}

}  // namespace
}  // namespace ptq
