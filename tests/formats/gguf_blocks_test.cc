// The blocks of GGUF: the bytes that ggml's own functions read as the golden data (32 x 64 codes in
// groups of 32), refusals, and a check that notices any difference.
#include "formats/gguf_blocks.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <numeric>

#include "common/sha256.h"
#include "tests/formats/tiny_checkpoint.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

constexpr auto kFailedPrecondition = absl::StatusCode::kFailedPrecondition;
constexpr int64_t kRows = 32;
constexpr int64_t kColumns = 64;

std::vector<int64_t> AllRows(int64_t count = kRows) {
  std::vector<int64_t> rows(static_cast<size_t>(count));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

int GoldenCode(int64_t n, int64_t k) {
  return static_cast<int>((7 * n + 3 * k + (n * k) % 5) % 16);
}

// Scales (n + 1 + 2g) / 64 in groups of 32, and unsigned codes and zero points by the functions.
template <typename Code, typename Zero>
AffineQuantizedTensor GoldenRecord(int bits, Code code, Zero zero) {
  const int half = 1 << (bits - 1);
  AffineQuantizedTensor record;
  record.bits = bits;
  record.quant_min = -half;
  record.quant_max = half - 1;
  record.block_size = {1, 32};
  record.int_data = at::empty({kRows, kColumns}, at::kChar);
  record.scale = at::empty({kRows, 2}, at::kHalf);
  record.zero_point = at::empty({kRows, 2}, at::kInt);
  for (int64_t n = 0; n < kRows; ++n) {
    for (int64_t k = 0; k < kColumns; ++k) record.int_data[n][k] = code(n, k) - half;
    for (int64_t g = 0; g < 2; ++g) {
      record.scale[n][g] = static_cast<double>(n + 1 + 2 * g) / 64;
      record.zero_point[n][g] = zero(n, g) - half;
    }
  }
  return record;
}

std::string Hex(const std::string& data, size_t bytes) {
  std::string hex;
  for (size_t i = 0; i < bytes; ++i) {
    char text[3];
    std::snprintf(text, sizeof(text), "%02x", static_cast<unsigned char>(data[i]));
    hex += text;
  }
  return hex;
}

TEST(GgufBlocksTest, Q4_0HasTheGoldenBytes) {
  const auto record = GoldenRecord(4, GoldenCode, [](int64_t, int64_t) { return 8; });
  const auto data = EncodeGgufRows("m", record, GgufType::kQ4_0, AllRows());
  ASSERT_THAT(data, IsOk());
  EXPECT_EQ(Hex(*data, 18), "002400336699ccff225588bbee114477aadd");
  EXPECT_EQ(Sha256Hex(*data), "dc738fdf88743b60c574adaeb4e2b6f49716cfa9d56028f50e9404c1c43c796e");
}

TEST(GgufBlocksTest, Q4_1HasTheGoldenBytes) {
  const auto record = GoldenRecord(
      4, GoldenCode, [](int64_t n, int64_t g) { return static_cast<int>(1 + (n + 3 * g) % 15); });
  const auto data = EncodeGgufRows("m", record, GgufType::kQ4_1, AllRows());
  ASSERT_THAT(data, IsOk());
  EXPECT_EQ(Hex(*data, 20), "002400a400336699ccff225588bbee114477aadd");
  EXPECT_EQ(Sha256Hex(*data), "e2910c56f52af21acb6f518c6221add3489882530ef5242702875d3d6733dfee");
}

TEST(GgufBlocksTest, Q8_0HasTheGoldenBytes) {
  const auto record = GoldenRecord(
      8,
      [](int64_t n, int64_t k) { return static_cast<int>((17 * GoldenCode(n, k) + n) % 255) + 1; },
      [](int64_t, int64_t) { return 128; });
  const auto data = EncodeGgufRows("m", record, GgufType::kQ8_0, AllRows());
  ASSERT_THAT(data, IsOk());
  EXPECT_EQ(Hex(*data, 8), "002481b4e71a4d81");
  EXPECT_EQ(Sha256Hex(*data), "4ed41cf5e6dc3187131256bdf7c3ed36f47f636ebb5d20431a409295c98b58b6");
}

struct Case {
  const char* name;
  QuantizationScheme scheme;
  GgufType type;
};

class GgufTypesTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override { at::manual_seed(5); }
  AffineQuantizedTensor record_ = testing::RandomRecord(GetParam().scheme, 6, 128);
};

TEST_P(GgufTypesTest, WhatIsWrittenIsWhatTheCheckReads) {
  const PlannedModule module = {"m", 6, 128, GetParam().scheme};
  const auto type = GgufTypeOf(module);
  ASSERT_THAT(type, IsOk());
  EXPECT_EQ(*type, GetParam().type);
  const std::vector<int64_t> rows = {3, 0, 5, 1, 2, 4};
  const auto data = EncodeGgufRows("m", record_, *type, rows);
  ASSERT_THAT(data, IsOk());
  EXPECT_THAT(CheckGgufRows("m", record_, *type, rows, *data), IsOk());
}

TEST_P(GgufTypesTest, TheCheckNoticesAFlippedBit) {
  const auto data = EncodeGgufRows("m", record_, GetParam().type, AllRows(6));
  ASSERT_THAT(data, IsOk());
  for (size_t byte = 0; byte < data->size(); byte += 7) {
    std::string damaged = *data;
    damaged[byte] = static_cast<char>(damaged[byte] ^ 1);
    SCOPED_TRACE(byte);
    EXPECT_THAT(CheckGgufRows("m", record_, GetParam().type, AllRows(6), damaged),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("m.weight")));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Schemes, GgufTypesTest,
    ::testing::Values(
        Case{"Q4_0", {.bits = 4, .group_size = 32}, GgufType::kQ4_0},
        Case{"Q4_0Wide", {.bits = 4, .group_size = 64}, GgufType::kQ4_0},
        Case{"Q4_0Channel", {.bits = 4, .group_size = -1}, GgufType::kQ4_0},
        Case{"Q4_1", {.bits = 4, .group_size = 32, .symmetric = false}, GgufType::kQ4_1},
        Case{"Q5_0", {.bits = 5, .group_size = 128}, GgufType::kQ5_0},
        Case{"Q5_1", {.bits = 5, .group_size = 32, .symmetric = false}, GgufType::kQ5_1},
        Case{"Q8_0", {.bits = 8, .group_size = 32}, GgufType::kQ8_0},
        Case{"Q8_0Tensor", {.bits = 8, .group_size = 0}, GgufType::kQ8_0}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(GgufBlocksTest, SchemesWithoutATypeAreRefusedByName) {
  EXPECT_THAT(
      GgufTypeOf({"a.b", 8, 64, {.bits = 3, .group_size = 32}}),
      StatusIs(kFailedPrecondition, HasSubstr("gguf can't hold a.b: it has no type for 3 bits")));
  EXPECT_THAT(GgufTypeOf({"a.b", 8, 64, {.bits = 8, .group_size = 32, .symmetric = false}}),
              StatusIs(kFailedPrecondition, HasSubstr("8 bits, asymmetric")));
  EXPECT_THAT(GgufTypeOf({"a.b", 8, 64, {.bits = 4, .group_size = 16}}),
              StatusIs(kFailedPrecondition, HasSubstr("use group size 32")));
  EXPECT_THAT(GgufTypeOf({"a.b", 8, 48, {.bits = 4, .group_size = -1}}),
              StatusIs(kFailedPrecondition, HasSubstr("there are 48")));
}

TEST(GgufBlocksTest, ValuesThatDoNotFitAreRefusedByName) {
  auto record = testing::RandomRecord({.bits = 4, .group_size = 32}, 2, 64);
  record.zero_point[1][1] = 2;
  EXPECT_THAT(EncodeGgufRows("a.b", record, GgufType::kQ4_0, AllRows(2)),
              StatusIs(kFailedPrecondition, HasSubstr("a.b.weight: zero_point 2 of group 3")));
  record = testing::RandomRecord({.bits = 4, .group_size = 32}, 2, 64);
  record.scale = record.scale.to(at::kFloat).mul(1.0001);
  EXPECT_THAT(EncodeGgufRows("a.b", record, GgufType::kQ4_0, AllRows(2)),
              StatusIs(kFailedPrecondition, HasSubstr("is no float16")));
  record = testing::RandomRecord({.bits = 4, .group_size = 32, .symmetric = false}, 2, 64);
  record.scale[0][0] = 60000.0;
  record.zero_point[0][0] = 7;
  EXPECT_THAT(EncodeGgufRows("a.b", record, GgufType::kQ4_1, AllRows(2)),
              StatusIs(kFailedPrecondition, HasSubstr("does not fit in float16")));
}

}  // namespace
}  // namespace ptq
