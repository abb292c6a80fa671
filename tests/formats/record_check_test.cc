// The check that runs before a shard gets its name notices every kind of damage.
#include "formats/record_check.h"

#include <gtest/gtest.h>

#include <cmath>

#include "formats/record_file.h"
#include "formats/torchao_metadata.h"
#include "tests/formats/tiny_checkpoint.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

constexpr auto kDataLoss = absl::StatusCode::kDataLoss;

class RecordCheckTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + "/record_check_" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    at::manual_seed(3);
    module_ = {"m", 6, 8, {.bits = 4, .group_size = 4, .symmetric = false}, DType::kBF16};
    record_ = testing::RandomRecord(module_.scheme, 6, 8);
  }

  RecordView View() const {
    return {.module = "m",
            .rows = 6,
            .columns = 8,
            .block_size = record_.block_size,
            .bits = record_.bits,
            .codes = record_.int_data.const_data_ptr<int8_t>(),
            .scale_dtype = DType::kF16,
            .scale = record_.scale.const_data_ptr(),
            .zero_point = record_.zero_point.const_data_ptr<int32_t>()};
  }
  // Writes `tensors` beside the record's metadata and checks them against the record.
  absl::Status CheckAffine(std::vector<NamedTensor> tensors) {
    const auto metadata = TorchaoMetadata({{"m.weight", true, module_.scheme, 6, 8}}, DType::kBF16,
                                          ScaleRule::kFullRange);
    return WriteSafetensors(path_, std::move(tensors), metadata,
                            [this](const std::string& path) -> absl::Status {
                              PTQ_ASSIGN_OR_RETURN(auto check, RecordCheck::Open(path));
                              PTQ_RETURN_IF_ERROR(check.CheckAffine(View(), DType::kBF16));
                              return check.CheckNothingElse();
                            })
        .status();
  }
  absl::Status CheckDequantized(const at::Tensor& weight, DType dtype) {
    return WriteSafetensors(path_, {{"m.weight", weight}}, {},
                            [&](const std::string& path) -> absl::Status {
                              PTQ_ASSIGN_OR_RETURN(auto check, RecordCheck::Open(path));
                              return check.CheckDequantized(View(), dtype);
                            })
        .status();
  }

  std::string path_;
  PlannedModule module_;
  AffineQuantizedTensor record_;
};

TEST_F(RecordCheckTest, PassesWhatTheWriterMade) {
  EXPECT_THAT(CheckAffine(RecordTensors(module_, record_)), IsOk());
}

TEST_F(RecordCheckTest, NoticesOneChangedCode) {
  AffineQuantizedTensor other = record_;
  other.int_data = record_.int_data.clone();
  int8_t& code = other.int_data.mutable_data_ptr<int8_t>()[29];
  code = code == 0 ? 1 : 0;
  EXPECT_THAT(CheckAffine(RecordTensors(module_, other)), StatusIs(kDataLoss, HasSubstr("[3, 5]")));
}

TEST_F(RecordCheckTest, NoticesACodeOutOfRange) {
  record_.int_data.mutable_data_ptr<int8_t>()[0] = 8;
  EXPECT_THAT(CheckAffine(RecordTensors(module_, record_)),
              StatusIs(kDataLoss, HasSubstr("code 8")));
}

TEST_F(RecordCheckTest, NoticesOneChangedScaleAndZeroPoint) {
  AffineQuantizedTensor other = record_;
  other.scale = record_.scale.clone();
  other.scale.mutable_data_ptr<at::Half>()[11].x ^= 1;
  EXPECT_THAT(CheckAffine(RecordTensors(module_, other)), StatusIs(kDataLoss, HasSubstr("[5, ")));
  other = record_;
  other.zero_point = record_.zero_point.bitwise_xor(1);
  EXPECT_THAT(CheckAffine(RecordTensors(module_, other)), StatusIs(kDataLoss, HasSubstr("[0, 0]")));
}

TEST_F(RecordCheckTest, NoticesScalesThatAreZeroOrInfinite) {
  record_.scale.mutable_data_ptr<at::Half>()[0].x = 0;
  EXPECT_THAT(CheckAffine(RecordTensors(module_, record_)),
              StatusIs(kDataLoss, HasSubstr("0 or not finite")));
  record_.scale.mutable_data_ptr<at::Half>()[0].x = 0x7C00;
  EXPECT_THAT(CheckAffine(RecordTensors(module_, record_)),
              StatusIs(kDataLoss, HasSubstr("0 or not finite")));
}

TEST_F(RecordCheckTest, NoticesMissingAndForeignTensors) {
  auto tensors = RecordTensors(module_, record_);
  tensors.push_back({"stray", at::zeros({1})});
  EXPECT_THAT(CheckAffine(tensors), StatusIs(kDataLoss, HasSubstr("stray")));
  tensors.resize(2);
  EXPECT_THAT(CheckAffine(tensors), StatusIs(kDataLoss, HasSubstr("zero_point")));
}

TEST_F(RecordCheckTest, RoundsAsTorchDoes) {
  // Scales from subnormal to large, so that both targets meet subnormals, ties and normal numbers.
  const at::Tensor exponents = at::arange(-24, -12).view({6, 2});
  record_.scale = at::exp2(exponents.to(at::kFloat)).mul(1.37).to(at::kHalf);
  EXPECT_THAT(CheckDequantized(Dequantize(record_, at::kBFloat16), DType::kBF16), IsOk());
  EXPECT_THAT(CheckDequantized(Dequantize(record_, at::kHalf), DType::kF16), IsOk());
  EXPECT_THAT(CheckDequantized(Dequantize(record_, at::kFloat), DType::kF32), IsOk());
  record_.scale = record_.scale.to(at::kFloat).mul(3e5).to(at::kHalf);
  EXPECT_THAT(CheckDequantized(Dequantize(record_, at::kBFloat16), DType::kBF16), IsOk());
  EXPECT_THAT(CheckDequantized(Dequantize(record_, at::kHalf), DType::kF16), IsOk());
}

TEST_F(RecordCheckTest, NoticesAnotherRounding) {
  at::Tensor weight = Dequantize(record_, at::kBFloat16).clone();
  weight.mutable_data_ptr<at::BFloat16>()[47].x ^= 1;
  EXPECT_THAT(CheckDequantized(weight, DType::kBF16), StatusIs(kDataLoss, HasSubstr("[5, 7]")));
}

TEST_F(RecordCheckTest, SaysWhichValueDoesNotFit) {
  record_.int_data.fill_(7);
  record_.zero_point.fill_(-8);
  record_.scale.fill_(60000.0);
  EXPECT_THAT(CheckDequantized(Dequantize(record_, at::kHalf), DType::kF16),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("does not fit in F16")));
}

}  // namespace
}  // namespace ptq
