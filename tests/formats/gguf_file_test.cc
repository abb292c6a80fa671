// A GGUF file comes back as it was written, and a damaged one is refused.
#include "formats/gguf_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "common/sha256.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

class GgufFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + "/gguf_file_" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
  }
  // Two tensors of which the first does not fill its last 32 bytes.
  std::vector<GgufTensorSource> Tensors() const {
    std::vector<GgufTensorSource> tensors(2);
    tensors[0].info = {"a.weight", GgufType::kF32, {3}, 0};
    tensors[0].write = [](const GgufSink& sink) {
      const float values[] = {1, 2, 3};
      return sink(values, sizeof(values));
    };
    tensors[1].info = {"b.weight", GgufType::kQ8_0, {2, 1, 64}, 0};
    tensors[1].write = [](const GgufSink& sink) { return sink(std::string(136, 'x').data(), 136); };
    return tensors;
  }
  absl::StatusOr<std::string> Write() const { return WriteGguf(path_, metadata_, Tensors()); }

  std::string path_;
  const GgufMetadata metadata_ = {
      {"a", true},
      {"b", uint32_t{7}},
      {"c", 0.5f},
      {"d", std::string("text")},
      {"e", std::vector<bool>{true, false}},
      {"f", std::vector<int32_t>{-1, 2}},
      {"g", std::vector<float>{0.25f}},
      {"h", std::vector<std::string>{"", "two"}},
  };
};

TEST_F(GgufFileTest, ComesBackAsItWasWritten) {
  const auto digest = Write();
  ASSERT_THAT(digest, IsOk());
  EXPECT_EQ(*digest, *Sha256File(path_));
  const auto file = GgufFile::Open(path_);
  ASSERT_THAT(file, IsOk());
  EXPECT_EQ(file->metadata(), metadata_);
  ASSERT_EQ(file->tensors().size(), 2u);
  const GgufTensorInfo* info = file->Find("b.weight");
  ASSERT_NE(info, nullptr);
  EXPECT_EQ(info->shape, (std::vector<int64_t>{2, 1, 64}));
  EXPECT_EQ(info->offset, 32);
  std::string bytes(136, '\0');
  ASSERT_THAT(file->Read(*info, 0, 136, bytes.data()), IsOk());
  EXPECT_EQ(bytes, std::string(136, 'x'));
}

TEST_F(GgufFileTest, HasThePublishedHeader) {
  ASSERT_THAT(WriteGguf(path_, {{"k", uint32_t{5}}}, {}), IsOk());
  const auto bytes = ReadFile(path_);
  ASSERT_THAT(bytes, IsOk());
  const std::string expected(
      "GGUF\3\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0k\4\0\0\0\5\0\0\0", 41);
  EXPECT_EQ(bytes->substr(0, 41), expected);
  EXPECT_EQ(bytes->size(), 64u);
}

TEST_F(GgufFileTest, NothingAppearsIfTheCheckOrATensorFails) {
  EXPECT_THAT(
      WriteGguf(path_, {}, Tensors(), [](const std::string&) { return absl::DataLossError("no"); }),
      StatusIs(absl::StatusCode::kDataLoss, HasSubstr("no")));
  auto tensors = Tensors();
  tensors[0].write = [](const GgufSink& sink) { return sink("1234", 4); };
  EXPECT_THAT(WriteGguf(path_, {}, tensors),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("4 bytes instead of 12")));
  EXPECT_FALSE(PathExists(path_));
}

TEST_F(GgufFileTest, EveryTruncationIsRefused) {
  ASSERT_THAT(Write(), IsOk());
  const auto bytes = ReadFile(path_);
  ASSERT_THAT(bytes, IsOk());
  for (size_t size = 0; size + 24 < bytes->size(); size += 5) {  // 24: the last tensor's padding
    ASSERT_THAT(WriteFileAtomically(path_, bytes->substr(0, size)), IsOk());
    SCOPED_TRACE(size);
    EXPECT_THAT(GgufFile::Open(path_), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("")));
  }
}

// As other programs write them: every kind of number, another alignment, version 2.
TEST_F(GgufFileTest, OtherKindsOfValuesAreRead) {
  const auto number = [](auto value) {
    std::string bytes(sizeof(value), '\0');
    std::memcpy(bytes.data(), &value, sizeof(value));
    return bytes;
  };
  const auto text = [&](const std::string& value) { return number(value.size()) + value; };
  const auto entry = [&](const std::string& key, uint32_t kind, const std::string& value) {
    return text(key) + number(kind) + value;
  };
  const auto array = [&](uint32_t kind, uint64_t count, const std::string& values) {
    return number(kind) + number(count) + values;
  };
  std::string bytes =
      "GGUF" + number(uint32_t{2}) + number(uint64_t{1}) + number(uint64_t{8}) +
      entry("general.alignment", 4, number(uint32_t{64})) + entry("u8", 0, number(uint8_t{200})) +
      entry("i16", 3, number(int16_t{-2})) + entry("u64", 10, number(uint64_t{1} << 40)) +
      entry("i64", 11, number(int64_t{5})) + entry("f64", 12, number(0.25)) +
      entry("u16s", 9, array(2, 2, number(uint16_t{1}) + number(uint16_t{65535}))) +
      entry("f64s", 9, array(12, 1, number(1.5))) + text("t") + number(uint32_t{1}) +
      number(uint64_t{2}) + number(uint32_t{0}) + number(uint64_t{0});
  bytes.resize((bytes.size() + 63) / 64 * 64);
  bytes += number(1.0f) + number(2.0f);
  ASSERT_THAT(WriteFileAtomically(path_, bytes), IsOk());
  const auto file = GgufFile::Open(path_);
  ASSERT_THAT(file, IsOk());
  const GgufMetadata expected = {{"general.alignment", uint32_t{64}},
                                 {"u8", uint32_t{200}},
                                 {"i16", int64_t{-2}},
                                 {"u64", int64_t{1} << 40},
                                 {"i64", uint32_t{5}},
                                 {"f64", 0.25f},
                                 {"u16s", std::vector<int32_t>{1, 65535}},
                                 {"f64s", std::vector<float>{1.5f}}};
  EXPECT_EQ(file->metadata(), expected);
  float values[2];
  ASSERT_THAT(file->Read(*file->Find("t"), 0, sizeof(values), values), IsOk());
  EXPECT_EQ(values[0], 1.0f);
  EXPECT_EQ(values[1], 2.0f);
}

TEST_F(GgufFileTest, ATypeWithoutRecordsIsNamed) {
  auto tensors = Tensors();
  ASSERT_THAT(WriteGguf(path_, {}, {tensors[1]}), IsOk());
  auto bytes = ReadFile(path_);
  ASSERT_THAT(bytes, IsOk());
  const size_t type = bytes->find("b.weight") + 8 + 4 + 3 * 8;
  ASSERT_EQ((*bytes)[type], 8);
  (*bytes)[type] = 19;
  ASSERT_THAT(WriteFileAtomically(path_, *bytes), IsOk());
  EXPECT_THAT(GgufFile::Open(path_), StatusIs(absl::StatusCode::kFailedPrecondition,
                                              HasSubstr("\"b.weight\" is IQ1_S, which no record")));
}

TEST_F(GgufFileTest, OtherFilesAreRefused) {
  ASSERT_THAT(WriteFileAtomically(path_, std::string(100, 'G')), IsOk());
  EXPECT_THAT(GgufFile::Open(path_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not a GGUF file")));
}

}  // namespace
}  // namespace ptq
