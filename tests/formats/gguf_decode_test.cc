// Blocks of ggml as records: what the encoder wrote comes back, and what no record holds is
// refused.
#include "formats/gguf_decode.h"

#include <ATen/ATen.h>
#include <c10/util/Half.h>
#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "algorithms/affine/affine_primitives.h"
#include "formats/gguf_blocks.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

constexpr int64_t kRows = 6;
constexpr int64_t kColumns = 96;

PlannedModule Module(GgufType type, int64_t rows = kRows, int64_t columns = kColumns) {
  PlannedModule module;
  module.module = "m";
  module.out_features = rows;
  module.in_features = columns;
  module.scheme = *SchemeOfGgufType(type);
  return module;
}

// All codes, scales of both signs, zero points 0 to the largest.
AffineQuantizedTensor Record(const PlannedModule& module) {
  const auto half = static_cast<int64_t>(1) << (module.scheme.bits - 1);
  AffineQuantizedTensor record;
  record.bits = module.scheme.bits;
  record.quant_min = -half;
  record.quant_max = half - 1;
  record.block_size = {1, 32};
  record.int_data = (at::arange(kRows * kColumns).mul(7).remainder(2 * half) - half)
                        .reshape({kRows, kColumns})
                        .to(at::kChar);
  const at::Tensor groups = at::arange(kRows * kColumns / 32).reshape({kRows, kColumns / 32});
  record.scale =
      (groups.remainder(2) * 2 - 1).mul(groups + 3).to(at::kFloat).div(977).to(at::kHalf);
  record.zero_point = at::zeros_like(groups).to(at::kInt);
  if (!module.scheme.symmetric) {
    record.zero_point = (groups.mul(5).remainder(2 * half) - half).to(at::kInt);
  }
  return record;
}

class GgufDecodeTest : public ::testing::TestWithParam<GgufType> {};

TEST_P(GgufDecodeTest, WhatWasEncodedComesBackInItsOrderOfRows) {
  const PlannedModule module = Module(GetParam());
  const AffineQuantizedTensor record = Record(module);
  const std::vector<int64_t> rows = {4, 0, 5, 2, 1, 3};
  const auto data = EncodeGgufRows("m", record, GetParam(), rows);
  ASSERT_THAT(data, IsOk());
  const auto decoded = DecodeGgufRecord(module, GetParam(), rows, *data);
  ASSERT_THAT(decoded, IsOk());
  EXPECT_TRUE(decoded->int_data.equal(record.int_data));
  EXPECT_TRUE(decoded->scale.equal(record.scale));
  EXPECT_TRUE(decoded->zero_point.equal(record.zero_point));
  EXPECT_EQ(decoded->block_size, record.block_size);
  EXPECT_EQ(decoded->bits, record.bits);
}

TEST_P(GgufDecodeTest, ValuesAreThoseOfTheRecord) {
  const PlannedModule module = Module(GetParam());
  const AffineQuantizedTensor record = Record(module);
  std::vector<int64_t> rows(kRows);
  std::iota(rows.begin(), rows.end(), 0);
  const auto data = EncodeGgufRows("m", record, GetParam(), rows);
  ASSERT_THAT(data, IsOk());
  at::Tensor values = at::empty({kRows, kColumns});
  DecodeGgufValues(GetParam(), data->data(), kRows * kColumns / 32, values.data_ptr<float>());
  const at::Tensor expected = Dequantize(record, at::kFloat);
  // The minimums are rounded to float16.
  const double tolerance = module.scheme.symmetric ? 0 : 1e-3;
  EXPECT_TRUE(values.allclose(expected, 0, tolerance));
}

INSTANTIATE_TEST_SUITE_P(Types, GgufDecodeTest,
                         ::testing::Values(GgufType::kQ8_0, GgufType::kQ4_0, GgufType::kQ5_0,
                                           GgufType::kQ4_1, GgufType::kQ5_1));

TEST(GgufDecodeTest, PlainTypesHaveNoScheme) {
  EXPECT_FALSE(SchemeOfGgufType(GgufType::kF32).has_value());
  EXPECT_FALSE(SchemeOfGgufType(GgufType::kBF16).has_value());
}

std::string Half(float value) {
  const c10::Half half(value);
  std::string bytes(2, '\0');
  std::memcpy(bytes.data(), &half.x, 2);
  return bytes;
}

absl::StatusOr<AffineQuantizedTensor> DecodeOne(GgufType type, const std::string& block) {
  return DecodeGgufRecord(Module(type, 1, 32), type, {0}, block);
}

TEST(GgufDecodeTest, AFreeMinimumIsRefusedByTensorAndPlace) {
  EXPECT_THAT(DecodeOne(GgufType::kQ4_1, Half(0.5f) + Half(-1.5f) + std::string(16, '\1')), IsOk());
  EXPECT_THAT(
      DecodeOne(GgufType::kQ4_1, Half(0.5f) + Half(-1.25f) + std::string(16, '\1')),
      StatusIs(
          absl::StatusCode::kFailedPrecondition,
          HasSubstr("tensor m.weight: Q4_1 block 0 of row 0 has the minimum -1.25, which is no "
                    "multiple of its scale 0.5")));
  // A multiple, but of more than the codes reach: a group of positive or of far negative values.
  for (const float minimum : {0.5f, -8.0f}) {
    EXPECT_THAT(DecodeOne(GgufType::kQ4_1, Half(0.5f) + Half(minimum) + std::string(16, '\1')),
                StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("minimum")));
  }
}

TEST(GgufDecodeTest, AScaleOfZeroKeepsTheValues) {
  const auto zero = DecodeOne(GgufType::kQ4_0, Half(0) + std::string(16, '\x31'));
  ASSERT_THAT(zero, IsOk());
  EXPECT_TRUE(Dequantize(*zero, at::kFloat).equal(at::zeros({1, 32})));
  EXPECT_NE(zero->scale.item<float>(), 0);
  const auto constant =
      DecodeOne(GgufType::kQ4_1, Half(0) + Half(-0.75f) + std::string(16, '\x31'));
  ASSERT_THAT(constant, IsOk());
  EXPECT_TRUE(Dequantize(*constant, at::kFloat).equal(at::full({1, 32}, -0.75)));
}

TEST(GgufDecodeTest, ScalesThatAreNoNumberAreRefused) {
  EXPECT_THAT(DecodeOne(GgufType::kQ8_0, Half(INFINITY) + std::string(32, '\1')),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("the scale inf")));
  EXPECT_THAT(DecodeOne(GgufType::kQ8_0, Half(1) + std::string(31, '\1')),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("another size")));
}

}  // namespace
}  // namespace ptq
