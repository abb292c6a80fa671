// Literals were made with torchao 0.18 in float32; quantizer_parity_test.py compares random
// weights.
#include "algorithms/affine/affine_primitives.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "algorithms/affine/affine_quantized_tensor.h"
#include "tests/algorithms/tensor_literals.h"

namespace ptq {
namespace {

using ::testing::ElementsAre;
using testing::Matrix;
using testing::Random;
using testing::Values;

constexpr std::array<int64_t, 2> kRow = {1, 4};

ChooseQParamsOptions Options(MappingType mapping, int64_t quant_min, int64_t quant_max) {
  ChooseQParamsOptions options;
  options.mapping_type = mapping;
  options.quant_min = quant_min;
  options.quant_max = quant_max;
  return options;
}

TEST(ChooseQParamsAffineTest, SymmetricDividesByHalfTheRange) {
  const at::Tensor x = Matrix(1, {-1, .5, 2, 3});
  const QParams qparams = ChooseQParamsAffine(x, kRow, Options(MappingType::kSymmetric, -8, 7));
  EXPECT_THAT(Values(qparams.scale), ElementsAre(0.4000000059604645));
  EXPECT_THAT(Values(qparams.zero_point), ElementsAre(0));
  EXPECT_EQ(qparams.zero_point.scalar_type(), at::kInt);
  EXPECT_THAT(Values(QuantizeAffine(x, kRow, qparams, -8, 7)), ElementsAre(-2, 1, 5, 7));
}

TEST(ChooseQParamsAffineTest, SymmetricZeroPointIsTheMiddleOfUnsignedCodes) {
  const at::Tensor x = Matrix(1, {-1, .5, 2, 3});
  const auto zero_point = [&](int64_t quant_min, int64_t quant_max) {
    return Values(
        ChooseQParamsAffine(x, kRow, Options(MappingType::kSymmetric, quant_min, quant_max))
            .zero_point);
  };
  EXPECT_THAT(zero_point(0, 15), ElementsAre(8));
  EXPECT_THAT(zero_point(0, 255), ElementsAre(128));
  EXPECT_THAT(zero_point(-127, 127), ElementsAre(0));
}

TEST(ChooseQParamsAffineTest, NoClippingErrorTakesTheSideThatNeedsMore) {
  const QParams qparams = ChooseQParamsAffine(Matrix(1, {-1, .5, 2, 3}), kRow,
                                              Options(MappingType::kSymmetricNoClippingErr, -8, 7));
  EXPECT_THAT(Values(qparams.scale), ElementsAre(0.4285714328289032));
}

TEST(ChooseQParamsAffineTest, AsymmetricKeepsZeroRepresentable) {
  const at::Tensor x = Matrix(2, {-1, .5, 2, 3, .25, -.125, 0, .0625});
  const QParams unsigned_codes =
      ChooseQParamsAffine(x, kRow, Options(MappingType::kAsymmetric, 0, 15));
  EXPECT_THAT(Values(unsigned_codes.scale), ElementsAre(0.2666666805744171, 0.02500000037252903));
  EXPECT_THAT(Values(unsigned_codes.zero_point), ElementsAre(4, 5));
  EXPECT_THAT(Values(QuantizeAffine(x, kRow, unsigned_codes, 0, 15)),
              ElementsAre(0, 6, 11, 15, 15, 0, 5, 7));
  const QParams signed_codes =
      ChooseQParamsAffine(x, kRow, Options(MappingType::kAsymmetric, -8, 7));
  EXPECT_THAT(Values(signed_codes.zero_point), ElementsAre(-4, -3));
}

TEST(ChooseQParamsAffineTest, FloatDomainMovesTheZeroPointIntoTheWeightsUnits) {
  ChooseQParamsOptions options = Options(MappingType::kAsymmetric, 0, 15);
  options.preserve_zero = false;
  options.zero_point_domain = ZeroPointDomain::kFloat;
  const at::Tensor x = Matrix(1, {-1, .5, 2, 3});
  const QParams qparams = ChooseQParamsAffine(x, kRow, options);
  EXPECT_THAT(Values(qparams.zero_point), ElementsAre(1.133333444595337));
  const at::Tensor codes = QuantizeAffine(x, kRow, qparams, 0, 15, ZeroPointDomain::kFloat);
  EXPECT_THAT(Values(codes), ElementsAre(0, 6, 11, 15));
  const at::Tensor back =
      DequantizeAffine(codes, kRow, qparams, 0, 15, at::kFloat, ZeroPointDomain::kFloat);
  EXPECT_LE((back - x).abs().max().item<float>(), qparams.scale.item<float>() / 2 + 1e-6f);
}

TEST(ChooseQParamsAffineTest, ZeroBlockGetsTheSmallestNormalScaleOfItsDtype) {
  const auto scale = [](at::ScalarType dtype) {
    return Values(
        ChooseQParamsAffine(at::zeros({1, 4}, dtype), kRow, Options(MappingType::kSymmetric, -8, 7))
            .scale);
  };
  EXPECT_THAT(scale(at::kFloat), ElementsAre(1.1754943508222875e-38));
  EXPECT_THAT(scale(at::kBFloat16), ElementsAre(1.1754943508222875e-38));
  EXPECT_THAT(scale(at::kHalf), ElementsAre(6.103515625e-05));
  const at::Tensor zeros = at::zeros({1, 4});
  const QParams qparams =
      ChooseQParamsAffine(zeros, kRow, Options(MappingType::kAsymmetric, 0, 15));
  EXPECT_TRUE(QuantizeAffine(zeros, kRow, qparams, 0, 15)
                  .equal(qparams.zero_point.expand({1, 4}).to(at::kChar)));
}

TEST(ChooseQParamsAffineTest, RawMinimumWithoutPreserveZero) {
  ChooseQParamsOptions options = Options(MappingType::kAsymmetric, 0, 3);
  options.preserve_zero = false;
  const QParams qparams = ChooseQParamsAffine(Matrix(1, {1, 2, 3, 4}), kRow, options);
  EXPECT_THAT(Values(qparams.scale), ElementsAre(1));
  EXPECT_THAT(Values(qparams.zero_point), ElementsAre(0));  // -1 clamped
}

TEST(ChooseQParamsAffineTest, ComputesInTheInputsDtypeUnlessTold) {
  const at::Tensor x = Random({4, 8}, 1).to(at::kBFloat16);
  ChooseQParamsOptions options = Options(MappingType::kSymmetric, -8, 7);
  EXPECT_EQ(ChooseQParamsAffine(x, {1, 8}, options).scale.scalar_type(), at::kBFloat16);
  options.scale_dtype = at::kFloat;
  options.eps = 100;
  const QParams qparams = ChooseQParamsAffine(x, {1, 8}, options);
  EXPECT_EQ(qparams.scale.scalar_type(), at::kFloat);
  EXPECT_THAT(Values(qparams.scale), ElementsAre(100, 100, 100, 100));
}

TEST(ChooseQParamsAffineTest, BlocksMaySpanRowsAndMustDivide) {
  const at::Tensor x = Matrix(2, {1, -15, 3, 7.5, 0, 2, 2, -3});
  const QParams qparams = ChooseQParamsAffine(x, {2, 2}, Options(MappingType::kSymmetric, -8, 7));
  EXPECT_EQ(qparams.scale.sizes(), (at::IntArrayRef{1, 2}));
  EXPECT_THAT(Values(qparams.scale), ElementsAre(2, 1));
  EXPECT_THROW(ChooseQParamsAffine(x, {1, 3}, Options(MappingType::kSymmetric, -8, 7)), c10::Error);
}

TEST(QuantizeAffineTest, MultipliesByTheReciprocalAndRoundsHalfToEven) {
  const QParams half{at::full({1, 1}, 2.0f), at::zeros({1, 1}, at::kInt)};
  EXPECT_THAT(Values(QuantizeAffine(Matrix(1, {1, 3, -1, -3}), kRow, half, -8, 7)),
              ElementsAre(0, 2, 0, -2));
  // 45.5 / 7 is the tie 6.5 and would go to 6; 45.5 * (1 / 7) is just above it in float32.
  const QParams seventh{at::full({1, 1}, 7.0f), at::zeros({1, 1}, at::kInt)};
  EXPECT_THAT(Values(QuantizeAffine(Matrix(1, {45.5, -45.5, 0, 0}), kRow, seventh, -8, 7)),
              ElementsAre(7, -7, 0, 0));
}

TEST(QuantizeAffineTest, UnsignedEightBitCodesAreBytes) {
  const at::Tensor x = Matrix(1, {0, 1, 2, 255});
  const QParams one{at::ones({1, 1}), at::zeros({1, 1}, at::kInt)};
  const at::Tensor codes = QuantizeAffine(x, kRow, one, 0, 255);
  EXPECT_EQ(codes.scalar_type(), at::kByte);
  EXPECT_THAT(Values(codes), ElementsAre(0, 1, 2, 255));
  EXPECT_TRUE(DequantizeAffine(codes, kRow, one, 0, 255, at::kFloat).equal(x));
}

TEST(FakeQuantizeAffineTest, IsQuantizeThenDequantizeAndIdempotent) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    SCOPED_TRACE(c10::toString(dtype));
    const at::Tensor x = Random({6, 64}, 2).to(dtype);
    const QParams qparams =
        ChooseQParamsAffine(x, {1, 32}, Options(MappingType::kAsymmetric, -8, 7));
    const at::Tensor codes = QuantizeAffine(x, {1, 32}, qparams, -8, 7);
    const at::Tensor values = DequantizeAffine(codes, {1, 32}, qparams, -8, 7, dtype);
    EXPECT_TRUE(FakeQuantizeAffine(x, {1, 32}, qparams, -8, 7).equal(values));
    EXPECT_TRUE(QuantizeAffine(values, {1, 32}, qparams, -8, 7).equal(codes));
  }
}

TEST(BlockSizeOfTest, NamesGroupChannelAndTensor) {
  QuantizationScheme scheme;
  scheme.group_size = 32;
  EXPECT_THAT(BlockSizeOf(scheme, 8, 64), ElementsAre(1, 32));
  scheme.group_size = QuantizationScheme::kPerChannel;
  EXPECT_THAT(BlockSizeOf(scheme, 8, 64), ElementsAre(1, 64));
  scheme.group_size = QuantizationScheme::kPerTensor;
  EXPECT_THAT(BlockSizeOf(scheme, 8, 64), ElementsAre(8, 64));
}

TEST(DequantizeTest, DecodesInFloatAndRoundsOnce) {
  AffineQuantizedTensor tensor;
  tensor.int_data = at::tensor({-8, 3, 7, -1}).to(at::kChar).view({2, 2});
  tensor.scale = at::tensor({-0.375, 0.10003662109375}).to(at::kHalf).view({2, 1});
  tensor.zero_point = at::tensor({0, -2}).to(at::kInt).view({2, 1});
  tensor.block_size = {1, 2};
  tensor.original_dtype = at::kBFloat16;
  EXPECT_THAT(Values(Dequantize(tensor, at::kFloat)),
              ElementsAre(3, -1.125, 0.90032958984375, 0.10003662109375));
  const at::Tensor stored = Dequantize(tensor);
  EXPECT_EQ(stored.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(stored.equal(Dequantize(tensor, at::kFloat).to(at::kBFloat16)));
}

}  // namespace
}  // namespace ptq
