// Tensors out of checkpoints and into safetensors files.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "common/sha256.h"
#include "formats/checkpoint_reader.h"
#include "formats/headers/safetensors_header.h"
#include "formats/safetensors_writer.h"
#include "tests/formats/tiny_checkpoint.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

class CheckpointIoTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/checkpoint_io_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_THAT(RemoveTree(folder_), IsOk());
    ASSERT_THAT(MakeDirectories(folder_), IsOk());
  }
  // A checkpoint of just these tensors.
  absl::StatusOr<std::unique_ptr<SafetensorsCheckpointReader>> Reader(
      std::vector<NamedTensor> tensors) {
    const auto digest =
        WriteSafetensors(folder_ + "/model.safetensors", std::move(tensors), {{"format", "pt"}});
    PTQ_RETURN_IF_ERROR(digest.status());
    PTQ_ASSIGN_OR_RETURN(auto index, CheckpointIndex::Open(folder_));
    return SafetensorsCheckpointReader::Open(std::move(index));
  }
  std::string folder_;
};

TEST_F(CheckpointIoTest, TensorsComeBackBitForBit) {
  at::manual_seed(1);
  const at::Tensor bf16 = at::randn({3, 5}).to(at::kBFloat16);
  const at::Tensor half = at::randn({7}).to(at::kHalf).narrow(0, 2, 4);
  const at::Tensor transposed = at::randn({4, 6}).t();
  const at::Tensor codes = at::arange(-128, 127, at::kChar);
  PTQ_ASSERT_OK_AND_ASSIGN(
      const auto reader,
      Reader(
          {{"b", bf16}, {"h", half}, {"t", transposed}, {"c", codes}, {"e", at::empty({0, 3})}}));
  const std::vector<NamedTensor> expected = {
      {"b", bf16}, {"h", half}, {"t", transposed}, {"c", codes}, {"e", at::empty({0, 3})}};
  for (const NamedTensor& tensor : expected) {
    SCOPED_TRACE(tensor.name);
    PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor read, reader->Read(tensor.name));
    EXPECT_EQ(read.scalar_type(), tensor.tensor.scalar_type());
    EXPECT_TRUE(read.equal(tensor.tensor));
  }
  EXPECT_TRUE(reader->Contains("b"));
  EXPECT_FALSE(reader->Contains("x"));
  EXPECT_THAT(reader->Read("x"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("tensor x")));
}

TEST_F(CheckpointIoTest, TensorsAreReadInPieces) {
  const at::Tensor values = at::randn({3, 5}).to(at::kHalf);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto reader, Reader({{"v", values}}));
  PTQ_ASSERT_OK_AND_ASSIGN(const StoredTensor stored, reader->Describe("v"));
  EXPECT_EQ(stored.dtype, at::kHalf);
  EXPECT_EQ(stored.shape, (std::vector<int64_t>{3, 5}));
  EXPECT_EQ(stored.bytes(), 30);
  at::Tensor memory = at::zeros({3, 5}, at::kHalf);
  char* data = static_cast<char*>(memory.data_ptr());
  ASSERT_THAT(reader->ReadBytes("v", 14, 16, data + 14), IsOk());
  ASSERT_THAT(reader->ReadBytes("v", 0, 14, data), IsOk());
  EXPECT_TRUE(memory.equal(values));
  EXPECT_THAT(reader->Describe("x"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("tensor x")));
  EXPECT_THAT(reader->ReadBytes("x", 0, 2, data),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("tensor x")));
  // A hint, of what is there or not.
  reader->Prefetch("v");
  reader->Prefetch("nothing");
  EXPECT_TRUE(reader->Read("v")->equal(values));
}

TEST_F(CheckpointIoTest, NanAndInfinityAreNamedWithTheirPlace) {
  for (const at::ScalarType dtype : {at::kFloat, at::kHalf, at::kBFloat16, at::kDouble}) {
    for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity(),
                             -std::numeric_limits<double>::infinity()}) {
      SCOPED_TRACE(std::string(c10::toString(dtype)) + " " + std::to_string(bad));
      // More than one piece of 1 MiB, an odd number of elements.
      at::Tensor tensor = at::zeros({1001, 1501}, dtype);
      tensor.select(0, 1000).select(0, 1500).fill_(bad);
      PTQ_ASSERT_OK_AND_ASSIGN(const auto reader, Reader({{"model.norm.weight", tensor}}));
      EXPECT_THAT(reader->Read("model.norm.weight"),
                  StatusIs(absl::StatusCode::kInvalidArgument,
                           AllOf(HasSubstr("model.norm.weight"), HasSubstr("[1000, 1500]"))));
    }
  }
}

TEST_F(CheckpointIoTest, LargestFiniteValuesPass) {
  const at::Tensor tensor = at::tensor({65504.0f, -65504.0f, 0.0f, 6e-8f}).to(at::kHalf);
  const at::Tensor wide = at::tensor({3.4028234e38f, -3.4028234e38f, 1e-45f});
  PTQ_ASSERT_OK_AND_ASSIGN(
      const auto reader,
      Reader({{"h", tensor}, {"b", wide.mul(0.99).to(at::kBFloat16)}, {"f", wide}}));
  for (const char* name : {"h", "b", "f"}) EXPECT_THAT(reader->Read(name), IsOk()) << name;
}

TEST_F(CheckpointIoTest, AFileThatBecameShorterIsDataLoss) {
  PTQ_ASSERT_OK_AND_ASSIGN(const auto reader, Reader({{"a", at::randn({64, 64})}}));
  ASSERT_EQ(::truncate((folder_ + "/model.safetensors").c_str(), 4096), 0);
  EXPECT_THAT(reader->Read("a"), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("tensor a")));
}

TEST_F(CheckpointIoTest, EqualInputGivesEqualBytesInAnyOrder) {
  at::manual_seed(2);
  const at::Tensor a = at::randn({3});
  const at::Tensor b = at::randn({4}).to(at::kHalf);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto first,
                           WriteSafetensors(folder_ + "/1", {{"a", a}, {"b", b}}, {{"k", "v"}}));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto second,
                           WriteSafetensors(folder_ + "/2", {{"b", b}, {"a", a}}, {{"k", "v"}}));
  EXPECT_EQ(first, second);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto digest, Sha256File(folder_ + "/1"));
  EXPECT_EQ(digest, first);
}

TEST_F(CheckpointIoTest, HeaderIsPaddedAndOrderedByElementSize) {
  ASSERT_THAT(WriteSafetensors(folder_ + "/f",
                               {{"a", at::ones({1}, at::kChar)}, {"b", at::ones({1}, at::kFloat)}},
                               {{"format", "pt"}}),
              IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(const auto bytes, ReadFile(folder_ + "/f"));
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
      R"("a":{"dtype":"I8","shape":[1],"data_offsets":[4,5]}})";
  EXPECT_EQ(bytes.substr(8, header.size()), header);
  EXPECT_EQ((bytes.size() - 5) % 8, 0u);
}

TEST_F(CheckpointIoTest, AFailedCheckLeavesNothing) {
  EXPECT_THAT(WriteSafetensors(folder_ + "/f", std::vector<NamedTensor>{{"a", at::ones({1})}}, {},
                               [](const std::string& path) {
                                 return PathExists(path) ? absl::DataLossError("bad")
                                                         : absl::InternalError("not there");
                               }),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("bad")));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto names, ListDirectory(folder_));
  EXPECT_TRUE(names.empty());
}

TEST_F(CheckpointIoTest, AFailedLoadLeavesNothing) {
  LazyTensor lazy;
  lazy.name = "a";
  lazy.shape = {2};
  lazy.load = []() -> absl::StatusOr<at::Tensor> {
    return absl::InvalidArgumentError("tensor a holds NaN");
  };
  EXPECT_THAT(WriteSafetensors(folder_ + "/f", std::vector<LazyTensor>{lazy}, {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("NaN")));
  lazy.load = []() -> absl::StatusOr<at::Tensor> { return at::zeros({3}); };
  EXPECT_THAT(WriteSafetensors(folder_ + "/f", std::vector<LazyTensor>{lazy}, {}),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("tensor a")));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto names, ListDirectory(folder_));
  EXPECT_TRUE(names.empty());
}

TEST_F(CheckpointIoTest, ATensorInPiecesGivesTheSameFileAsAWholeOne) {
  const at::Tensor whole = at::arange((21 << 20) / 4 + 3, at::kInt);  // two pieces and a half
  PTQ_ASSERT_OK_AND_ASSIGN(
      const std::string expected,
      WriteSafetensors(folder_ + "/whole", std::vector<NamedTensor>{{"a", whole}}, {}));
  LazyTensor lazy;
  lazy.name = "a";
  lazy.dtype = at::kInt;
  lazy.shape = whole.sizes().vec();
  lazy.read = [&](int64_t offset, int64_t size, void* out) {
    std::memcpy(out, static_cast<const char*>(whole.const_data_ptr()) + offset,
                static_cast<size_t>(size));
    return absl::OkStatus();
  };
  PTQ_ASSERT_OK_AND_ASSIGN(
      const std::string pieces,
      WriteSafetensors(folder_ + "/pieces", std::vector<LazyTensor>{lazy}, {}));
  EXPECT_EQ(pieces, expected);
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string sha256, Sha256File(folder_ + "/pieces"));
  EXPECT_EQ(sha256, expected);

  lazy.read = [](int64_t offset, int64_t, void*) {
    return offset == 0 ? absl::OkStatus() : absl::DataLossError("the second piece is gone");
  };
  EXPECT_THAT(WriteSafetensors(folder_ + "/half", std::vector<LazyTensor>{lazy}, {}),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("second piece")));
  EXPECT_FALSE(PathExists(folder_ + "/half"));
}

TEST_F(CheckpointIoTest, AFolderThatIsMissingIsAnErrorWithThePath) {
  EXPECT_THAT(WriteSafetensors(folder_ + "/none/f", std::vector<NamedTensor>{}, {}),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/none/f")));
}

}  // namespace
}  // namespace ptq
