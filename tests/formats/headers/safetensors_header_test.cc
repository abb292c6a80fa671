// The reference reader's rules, our stricter ones, and files that only pretend to be safetensors.
#include "formats/headers/safetensors_header.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/formats/headers/header_testing.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::FolderTest;
using ::testing::HasSubstr;
using testing::HeaderOf;
using testing::IsOk;
using testing::LengthPrefix;
using testing::SafetensorsFile;
using ::testing::StartsWith;
using testing::StatusIs;

void ExpectRefused(const std::string& json, int64_t data_bytes, const std::string& why) {
  EXPECT_THAT(ParseSafetensorsHeader(json, data_bytes),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)))
      << json.substr(0, 300);
}

// One tensor "a" of two F32 with some members replaced.
std::string OneTensor(const std::string& dtype, const std::string& shape,
                      const std::string& offsets) {
  return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

TEST(SafetensorsHeaderTest, ReadsTensorsByOffsetAndMetadata) {
  PTQ_ASSERT_OK_AND_ASSIGN(
      const SafetensorsHeader header,
      ParseSafetensorsHeader(R"({"__metadata__":{"format":"pt","":"x"},)"
                             R"("b":{"data_offsets":[8,14],"dtype":"BF16","shape":[3,1]},)"
                             R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
                             14));
  ASSERT_EQ(header.tensors.size(), 2u);
  EXPECT_EQ(header.tensors[0].name, "a");
  EXPECT_EQ(header.tensors[1].name, "b");
  EXPECT_EQ(header.tensors[1].dtype, DType::kBF16);
  EXPECT_THAT(header.tensors[1].shape, ElementsAre(3, 1));
  EXPECT_EQ(header.tensors[1].begin, 8);
  EXPECT_EQ(header.tensors[1].bytes(), 6);
  EXPECT_EQ(header.metadata.at("format"), "pt");
  EXPECT_EQ(header.metadata.at(""), "x");
}

TEST(SafetensorsHeaderTest, AcceptsPaddingScalarsAndEmptyTensors) {
  EXPECT_THAT(ParseSafetensorsHeader(" \n\t{} \r\n ", 0), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(
      const SafetensorsHeader header,
      ParseSafetensorsHeader(R"({"e":{"dtype":"F32","shape":[0,7],"data_offsets":[4,4]},)"
                             R"("s":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                             R"("f":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})",
                             4));
  EXPECT_EQ(header.tensors[0].name, "f");
  EXPECT_EQ(header.tensors[1].name, "s");
  EXPECT_EQ(header.tensors[2].name, "e");
}

TEST(SafetensorsHeaderTest, KnowsAllDtypesAndTheirSizes) {
  const std::vector<std::pair<std::string, int>> sizes = {
      {"BOOL", 8}, {"F4", 4},          {"F6_E2M3", 6},     {"F6_E3M2", 6}, {"U8", 8},
      {"I8", 8},   {"F8_E5M2", 8},     {"F8_E4M3", 8},     {"F8_E8M0", 8}, {"I16", 16},
      {"U16", 16}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F16", 16},    {"BF16", 16},
      {"I32", 32}, {"U32", 32},        {"F32", 32},        {"C64", 64},    {"F64", 64},
      {"I64", 64}, {"U64", 64}};
  ASSERT_EQ(sizes.size(), 22u);
  for (const auto& [name, bits] : sizes) {
    SCOPED_TRACE(name);
    const auto dtype = DTypeFromName(name);
    ASSERT_TRUE(dtype.has_value());
    EXPECT_EQ(DTypeName(*dtype), name);
    EXPECT_EQ(DTypeBits(*dtype), bits);
    EXPECT_THAT(ParseSafetensorsHeader(
                    OneTensor('"' + name + '"', "[8]", "[0," + std::to_string(bits) + "]"), bits),
                IsOk());
  }
  EXPECT_FALSE(DTypeFromName("bf16").has_value());
  EXPECT_FALSE(DTypeFromName("").has_value());
}

TEST(SafetensorsHeaderTest, SubByteTensorsMustFillWholeBytes) {
  EXPECT_THAT(ParseSafetensorsHeader(OneTensor(R"("F4")", "[6]", "[0,3]"), 3), IsOk());
  ExpectRefused(OneTensor(R"("F4")", "[5]", "[0,3]"), 3, "whole bytes");
  ExpectRefused(OneTensor(R"("F6_E2M3")", "[3]", "[0,2]"), 2, "whole bytes");
}

TEST(SafetensorsHeaderTest, RefusesWhatIsNotJson) {
  for (const std::string& json :
       {std::string("{"), std::string(R"({"a":})"), std::string("{}x"), std::string("{}{}"),
        std::string(R"({"a":"\ud800"})"), std::string("{\"\xff\":{}}"), std::string("{}\0{}", 5),
        std::string("{\"a\0\":{}}", 9), std::string("{'a':{}}"),
        std::string(R"({"__metadata__":{},})"), std::string(R"({"a":NaN})")}) {
    ExpectRefused(json, 0, "not valid JSON at byte");
  }
  for (const std::string& json :
       {std::string(), std::string("  "), std::string("[]"), std::string("null"), std::string("1"),
        std::string("\xEF\xBB\xBF{}")}) {
    ExpectRefused(json, 0, "not a JSON object");
  }
}

TEST(SafetensorsHeaderTest, RefusesDepthBombs) {
  ExpectRefused(R"({"a":)" + std::string(1'000'000, '['), 0, "\"a\" must be an object");
  ExpectRefused(OneTensor(R"("F32")", std::string(1'000'000, '['), "[0,8]"), 8, "shape");
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += R"({"a":)";
  ExpectRefused(objects, 0, "unknown field");
}

TEST(SafetensorsHeaderTest, RefusesRepeatedNames) {
  const std::string tensor = R"("a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]})";
  ExpectRefused("{" + tensor + "," + tensor + "}", 0, "the tensor name \"a\" is repeated");
  // Two names for the same bytes of JSON.
  ExpectRefused("{" + tensor + ",\"\\u0061\"" + tensor.substr(3) + "}", 0, "\"a\" is repeated");
  ExpectRefused(R"({"__metadata__":{},"__metadata__":{}})", 0, "__metadata__ is repeated");
  ExpectRefused(R"({"__metadata__":{"k":"1","k":"2"}})", 0, "\"k\" of __metadata__ is repeated");
  ExpectRefused(R"({"a":{"dtype":"F32","dtype":"F32","shape":[0],"data_offsets":[0,0]}})", 0,
                "dtype of tensor \"a\" is repeated");
}

TEST(SafetensorsHeaderTest, RefusesMetadataThatIsNotText) {
  ExpectRefused(R"({"__metadata__":{"k":1}})", 0, "\"k\" of __metadata__ must be a string");
  ExpectRefused(R"({"__metadata__":{"k":null}})", 0, "must be a string");
  ExpectRefused(R"({"__metadata__":{"k":{}}})", 0, "must be a string");
  ExpectRefused(R"({"__metadata__":[]})", 0, "\"__metadata__\" must be an object");
}

TEST(SafetensorsHeaderTest, RefusesIncompleteAndUnknownFields) {
  ExpectRefused(R"({"a":{}})", 0, "tensor \"a\" has no dtype");
  ExpectRefused(R"({"a":{"dtype":"F32","data_offsets":[0,0]}})", 0, "has no shape");
  ExpectRefused(R"({"a":{"dtype":"F32","shape":[0]}})", 0, "has no data_offsets");
  ExpectRefused(R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0],"x":1}})", 0,
                "unknown field \"x\"");
  ExpectRefused(OneTensor(R"("F31")", "[2]", "[0,8]"), 8, "unknown dtype \"F31\"");
  ExpectRefused(OneTensor("32", "[2]", "[0,8]"), 8, "dtype of tensor \"a\" is wrong");
  ExpectRefused(OneTensor(R"("F32")", "2", "[0,8]"), 8, "shape of tensor \"a\" is wrong");
  ExpectRefused(OneTensor(R"("F32")", "[2]", "[0]"), 8, "must be two numbers");
  ExpectRefused(OneTensor(R"("F32")", "[2]", "[0,4,8]"), 8, "a third number");
  ExpectRefused(OneTensor(R"("F32")", "[2]", R"({"0":8})"), 8, "data_offsets of tensor \"a\"");
}

TEST(SafetensorsHeaderTest, RefusesNumbersThatAreNoSizes) {
  for (const char* number :
       {"-1", "-0", "2.0", "1e2", "true", "null", "\"2\"", "9223372036854775808",
        "18446744073709551616", "99999999999999999999999"}) {
    SCOPED_TRACE(number);
    ExpectRefused(OneTensor(R"("F32")", "[" + std::string(number) + "]", "[0,8]"), 8,
                  "shape of tensor \"a\" is wrong");
    ExpectRefused(OneTensor(R"("F32")", "[2]", "[0," + std::string(number) + "]"), 8,
                  "data_offsets of tensor \"a\" is wrong");
  }
}

TEST(SafetensorsHeaderTest, RefusesSizesThatOverflow) {
  ExpectRefused(OneTensor(R"("U8")", "[4294967296,4294967296]", "[0,0]"), 0, "too large");
  ExpectRefused(OneTensor(R"("F64")", "[1152921504606846976]", "[0,0]"), 0, "too large");
  ExpectRefused(OneTensor(R"("U8")", "[9223372036854775807,2]", "[0,9223372036854775807]"), 8,
                "too large");
}

TEST(SafetensorsHeaderTest, RefusesOverlapsHolesAndStrayBytes) {
  const auto two = [](const std::string& first, const std::string& second) {
    return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + first +
           R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
  };
  EXPECT_THAT(ParseSafetensorsHeader(two("[4,8]", "[0,4]"), 8), IsOk());
  ExpectRefused(two("[0,4]", "[0,4]"), 8, "\"b\" begins at byte 0 and overlaps tensor \"a\"");
  ExpectRefused(two("[0,4]", "[2,6]"), 8, "\"b\" begins at byte 2 and overlaps tensor \"a\"");
  ExpectRefused(two("[0,4]", "[5,9]"), 9, "\"b\" begins at byte 5, leaving a hole of 1 bytes");
  ExpectRefused(two("[1,5]", "[5,9]"), 9, "\"a\" begins at byte 1, leaving a hole of 1 bytes");
  ExpectRefused(two("[4,0]", "[4,8]"), 8, "\"a\" ends (0) before it begins (4)");
  ExpectRefused(two("[0,4]", "[4,7]"), 7, "takes 4 bytes, but its offsets span 3");
  ExpectRefused(two("[0,4]", "[4,8]"), 7, "\"b\" ends at byte 8 of the data");
  ExpectRefused(two("[0,4]", "[4,8]"), 9, "1 bytes follow the last tensor");
  ExpectRefused("{}", 1, "1 bytes follow");
}

TEST(SafetensorsHeaderTest, RefusesHostileNamesAndRanks) {
  const std::string rest = R"(":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})";
  EXPECT_THAT(ParseSafetensorsHeader("{\"" + std::string(512, 'n') + rest, 0), IsOk());
  ExpectRefused("{\"" + std::string(513, 'n') + rest, 0, "513 bytes");
  ExpectRefused("{\"" + rest, 0, "0 bytes");
  ExpectRefused("{\"a\\u0000b" + rest, 0, "control character");
  ExpectRefused("{\"a\\nb" + rest, 0, "control character");
  EXPECT_THAT(ParseSafetensorsHeader(OneTensor(R"("U8")", "[1,1,1,1,1,1,1,1]", "[0,1]"), 1),
              IsOk());
  ExpectRefused(OneTensor(R"("U8")", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, "more than 8 dimensions");
}

TEST(SafetensorsHeaderTest, AHundredThousandTensorsTakeLessThanASecond) {
  std::vector<testing::TensorSketch> tensors;
  for (int i = 0; i < 100'000; ++i) {
    tensors.push_back({"model.layers." + std::to_string(i) + ".mlp.experts.7.down_proj.weight",
                       DType::kBF16,
                       {4, 8}});
  }
  const std::string json = DumpJson(HeaderOf(tensors));
  const double start = testing::CpuSeconds();
  PTQ_ASSERT_OK_AND_ASSIGN(const SafetensorsHeader header,
                           ParseSafetensorsHeader(json, 100'000 * 64));
  const double seconds = testing::CpuSeconds() - start;
  EXPECT_EQ(header.tensors.size(), 100'000u);
  EXPECT_LT(seconds, 1.0);
  RecordProperty("milliseconds", static_cast<int>(seconds * 1000));
}

class SafetensorsFileTest : public FolderTest {
 protected:
  absl::StatusOr<SafetensorsHeader> Read(const std::string& bytes) {
    Write("x.safetensors", bytes);
    auto file = ReadableFile::Open(Path("x.safetensors"));
    EXPECT_THAT(file, IsOk());
    return ReadSafetensorsHeader(*file);
  }
  void ExpectRefusedFile(const std::string& bytes, const std::string& why) {
    EXPECT_THAT(Read(bytes), StatusIs(absl::StatusCode::kInvalidArgument,
                                      AllOf(StartsWith(Path("x.safetensors")), HasSubstr(why))));
  }
};

TEST_F(SafetensorsFileTest, DataBeginsAfterTheHeader) {
  const std::string bytes = SafetensorsFile({{"a", DType::kF32, {2, 3}}});
  PTQ_ASSERT_OK_AND_ASSIGN(const SafetensorsHeader header, Read(bytes));
  EXPECT_EQ(header.data_offset + 24, static_cast<int64_t>(bytes.size()));
}

TEST_F(SafetensorsFileTest, LeadingSpacesAreAccepted) {
  EXPECT_THAT(Read(LengthPrefix(10) + "        {}"), IsOk());
}

TEST_F(SafetensorsFileTest, RefusesImpossibleLengths) {
  ExpectRefusedFile("", "0 bytes are too few");
  ExpectRefusedFile("1234567", "7 bytes are too few");
  ExpectRefusedFile(LengthPrefix(0), "a header of 0 bytes");
  ExpectRefusedFile(LengthPrefix(0) + "{}", "a header of 0 bytes");
  ExpectRefusedFile(LengthPrefix(7) + "{}", "a header of 7 bytes does not fit the file's 10");
  ExpectRefusedFile(LengthPrefix(10) + "{}", "a header of 10 bytes");
  ExpectRefusedFile(LengthPrefix(100'000'001) + "{}", "a header of 100000001 bytes");
  ExpectRefusedFile(LengthPrefix(uint64_t{1} << 63) + "{}", "a header of 9223372036854775808");
  ExpectRefusedFile(LengthPrefix(~uint64_t{0}) + "{}", "a header of 18446744073709551615");
}

TEST_F(SafetensorsFileTest, NamesTheTensorThatATruncatedFileLacks) {
  const std::string bytes =
      SafetensorsFile({{"first", DType::kF32, {4}}, {"second", DType::kF32, {4}}});
  ExpectRefusedFile(bytes.substr(0, bytes.size() - 1), "\"second\" ends at byte 32");
  ExpectRefusedFile(bytes.substr(0, bytes.size() - 17), "\"first\" ends at byte 16");
  ExpectRefusedFile(bytes + "x", "1 bytes follow the last tensor");
}

TEST_F(SafetensorsFileTest, RecognisesForeignFormats) {
  ExpectRefusedFile("PK\x03\x04" + std::string(100, '\0'), "a ZIP archive");
  ExpectRefusedFile(std::string("PK\x03\x04\x14\x00\x00\x08", 8) + std::string(100, 'x'),
                    "a ZIP archive");
  for (const char* protocol : {"\x80\x02", "\x80\x03", "\x80\x04", "\x80\x05"}) {
    ExpectRefusedFile(std::string(protocol) + "\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20 and so on",
                      "a pickle file");
  }
  // A short frame: the length is plausible, the JSON is not.
  ExpectRefusedFile(std::string("\x80\x02\0\0\0\0\0\0", 8) + std::string(0x280, '.'),
                    "a pickle file");
  ExpectRefusedFile("GGUF" + std::string("\x03\0\0\0\x20\0\0\0", 8), "a GGUF file");
  ExpectRefusedFile("version https://git-lfs.github.com/spec/v1\n", "git lfs pull");
}

TEST_F(SafetensorsFileTest, AHeaderOf640BytesIsNoPickle) {
  const std::string header = DumpJson(HeaderOf({{"a", DType::kF32, {2}}}));
  EXPECT_THAT(Read(LengthPrefix(0x280) + header + std::string(0x280 - header.size(), ' ') +
                   std::string(8, '\0')),
              IsOk());
}

TEST_F(SafetensorsFileTest, AnotherNameHidesThePath) {
  Write("x.safetensors", "short");
  PTQ_ASSERT_OK_AND_ASSIGN(const auto file, ReadableFile::Open(Path("x.safetensors")));
  EXPECT_THAT(ReadSafetensorsHeader(file, "shown"),
              StatusIs(absl::StatusCode::kInvalidArgument, StartsWith("shown: ")));
}

}  // namespace
}  // namespace ptq
