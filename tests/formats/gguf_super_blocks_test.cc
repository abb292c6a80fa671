// Super-blocks of GGUF: what is written is what the check reads, and the check notices any
// difference. tests/interop/gguf_output_test.py has the gguf package and llama.cpp read them.
#include "formats/gguf_super_blocks.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "formats/gguf_blocks.h"
#include "tests/formats/tiny_checkpoint.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

constexpr auto kFailedPrecondition = absl::StatusCode::kFailedPrecondition;

class GgufSuperBlocksTest : public ::testing::TestWithParam<KQuant> {
 protected:
  void SetUp() override {
    at::manual_seed(5);
    record_ = testing::RandomRecord(KQuantScheme(GetParam()), 4, 512);
    PTQ_ASSERT_OK_AND_ASSIGN(type_, GgufTypeOf({"m", 4, 512, KQuantScheme(GetParam())}));
  }
  AffineQuantizedTensor record_;
  GgufType type_ = GgufType::kF32;
};

TEST_P(GgufSuperBlocksTest, WhatIsWrittenIsWhatTheCheckReads) {
  EXPECT_STREQ(TraitsOf(type_).name, KQuantName(GetParam()));
  EXPECT_EQ(KQuantOf(type_), GetParam());
  const std::vector<int64_t> rows = {3, 0, 2, 1};
  const auto data = EncodeGgufRows("m", record_, type_, rows);
  ASSERT_THAT(data, IsOk());
  EXPECT_EQ(static_cast<int64_t>(data->size()), 8 * TraitsOf(GetParam()).bytes);
  EXPECT_THAT(CheckGgufRows("m", record_, type_, rows, *data), IsOk());
  EXPECT_THAT(CheckGgufRows("m", record_, type_, {0, 3, 2, 1}, *data),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("m.weight")));
}

TEST_P(GgufSuperBlocksTest, TheCheckNoticesAFlippedBit) {
  const std::vector<int64_t> rows = {0, 1, 2, 3};
  const auto data = EncodeGgufRows("m", record_, type_, rows);
  ASSERT_THAT(data, IsOk());
  for (size_t byte = 0; byte < data->size(); byte += 5) {
    std::string damaged = *data;
    damaged[byte] = static_cast<char>(damaged[byte] ^ (1 << byte % 8));
    SCOPED_TRACE(byte);
    EXPECT_THAT(CheckGgufRows("m", record_, type_, rows, damaged),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("another value")));
  }
}

INSTANTIATE_TEST_SUITE_P(Types, GgufSuperBlocksTest,
                         ::testing::Values(KQuant::kQ2_K, KQuant::kQ3_K, KQuant::kQ4_K,
                                           KQuant::kQ5_K, KQuant::kQ6_K),
                         [](const auto& test) { return std::string(KQuantName(test.param)); });

TEST(GgufSuperBlocksTypesTest, RowsOfNoWholeSuperBlocksAreRefusedByName) {
  EXPECT_THAT(GgufTypeOf({"a.b", 8, 384, KQuantScheme(KQuant::kQ4_K)}),
              StatusIs(kFailedPrecondition,
                       HasSubstr("gguf can't hold a.b: Q4_K has super-blocks of 256 columns, and "
                                 "there are 384")));
  // Nobody gets a K-quant for the widths of one.
  for (size_t i = 0; i < kKQuantNames.size(); ++i) {
    QuantizationScheme scheme = KQuantScheme(static_cast<KQuant>(i + 1));
    scheme.k_quant = KQuant::kNone;
    EXPECT_EQ(KQuantOf(GgufTypeOf({"a.b", 8, 512, scheme}).value_or(GgufType::kF32)),
              KQuant::kNone);
  }
}

}  // namespace
}  // namespace ptq
