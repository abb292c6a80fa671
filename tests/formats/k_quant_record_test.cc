// Records of K-quants in a job's files: bit for bit, and what is refused.
#include "formats/k_quant_record.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "formats/checkpoint_folder.h"
#include "formats/record_check.h"
#include "formats/torchao_metadata.h"
#include "tests/formats/tiny_checkpoint.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

constexpr auto kFailedPrecondition = absl::StatusCode::kFailedPrecondition;

class KQuantRecordTest : public ::testing::TestWithParam<KQuant> {
 protected:
  void SetUp() override {
    at::manual_seed(5);
    module_ = {"model.layers.0.a", 6, 512, KQuantScheme(GetParam()), DType::kBF16};
    record_ = testing::RandomRecord(module_.scheme, 6, 512);
    path_ = ::testing::TempDir() + "/k_quant_record_" + KQuantName(GetParam());
  }
  absl::Status Write(const PlannedModule& described) {
    return WriteSafetensors(path_, RecordTensors(module_, record_),
                            TorchaoMetadata({{module_.module + ".weight", true, described.scheme,
                                              module_.out_features, module_.in_features}},
                                            DType::kBF16, ScaleRule::kFullRange))
        .status();
  }
  PlannedModule module_;
  AffineQuantizedTensor record_;
  std::string path_;
};

TEST_P(KQuantRecordTest, ComesBackFromAFile) {
  EXPECT_THAT(ValidateRecord(module_, record_), IsOk());
  ASSERT_THAT(Write(module_), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(auto read, ReadRecords(path_, {module_}));
  AffineQuantizedTensor& back = read[0].weight;
  const auto expected = TensorsOf(record_);
  const auto tensors = TensorsOf(back);
  ASSERT_EQ(tensors.size(), expected.size());
  EXPECT_EQ(tensors.size(), RecordTensorNames(module_).size());
  for (size_t i = 0; i < tensors.size(); ++i) EXPECT_TRUE(tensors[i]->equal(*expected[i]));
  EXPECT_TRUE(Dequantize(back).equal(Dequantize(record_)));
  EXPECT_EQ(back.k_quant, GetParam());
}

TEST_P(KQuantRecordTest, TheCheckNoticesAnotherRecord) {
  ASSERT_THAT(Write(module_), IsOk());
  for (at::Tensor* tensor : TensorsOf(record_)) {
    PTQ_ASSERT_OK_AND_ASSIGN(RecordCheck file, RecordCheck::Open(path_));
    EXPECT_THAT(file.CheckAffine(ViewOf(module_, record_), DType::kBF16), IsOk());
    EXPECT_THAT(file.CheckNothingElse(), IsOk());
    const at::Tensor before = tensor->clone();
    (*tensor)[5].select(0, -1).neg_().add_(1);
    EXPECT_THAT(file.CheckAffine(ViewOf(module_, record_), DType::kBF16),
                StatusIs(absl::StatusCode::kDataLoss, HasSubstr("model.layers.0.a")));
    tensor->copy_(before);
  }
}

TEST_P(KQuantRecordTest, AnotherSchemesFileIsRefused) {
  PlannedModule plain = module_;
  plain.scheme.k_quant = KQuant::kNone;
  ASSERT_THAT(Write(plain), IsOk());
  EXPECT_THAT(ReadRecords(path_, {module_}),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("another scheme than planned")));
  EXPECT_THAT(ValidateRecord(plain, record_),
              StatusIs(kFailedPrecondition, HasSubstr("it is a record of Q")));
  EXPECT_THAT(ValidateRecord(module_, testing::RandomRecord(plain.scheme, 6, 512)),
              StatusIs(kFailedPrecondition, HasSubstr("it is no record of Q")));
}

TEST_P(KQuantRecordTest, ValuesBeyondTheTypeAreRefused) {
  const auto refused = [this](const std::string& what) {
    EXPECT_THAT(ValidateRecord(module_, record_),
                StatusIs(kFailedPrecondition,
                         ::testing::AllOf(HasSubstr("model.layers.0.a.weight"), HasSubstr(what))));
    SetUp();
  };
  record_.int_data[2][3] = 100;
  refused("int_data");
  record_.super_blocks.scale[1][1] = std::nan("");
  refused("super_scale");
  record_.super_blocks.sub_scale = record_.super_blocks.sub_scale.narrow(1, 0, 2);
  refused("sub_scale");
  if (GetParam() != KQuant::kQ6_K) {  // of which every byte is a scale
    record_.super_blocks.sub_scale[0][0] = 64;
    refused("sub_scale");
  }
  record_.scale = at::ones({6, 2});
  refused("scale or zero_point");
}

INSTANTIATE_TEST_SUITE_P(Types, KQuantRecordTest,
                         ::testing::Values(KQuant::kQ2_K, KQuant::kQ3_K, KQuant::kQ4_K,
                                           KQuant::kQ5_K, KQuant::kQ6_K),
                         [](const auto& test) { return std::string(KQuantName(test.param)); });

}  // namespace
}  // namespace ptq
