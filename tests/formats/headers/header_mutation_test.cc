// Twenty thousand broken headers: none crashes the parser, and what it accepts obeys the format.
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>
#include <vector>

#include "formats/headers/safetensors_header.h"
#include "tests/formats/headers/header_testing.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

constexpr int kMutations = 20'000;

class Mutator {
 public:
  explicit Mutator(std::string valid) : valid_(std::move(valid)) {}

  // The valid header with one to three edits.
  std::string Next() {
    std::string text = valid_;
    for (size_t edits = 1 + Below(3); edits > 0; --edits) Edit(&text);
    return text;
  }

 private:
  size_t Below(size_t end) { return std::uniform_int_distribution<size_t>(0, end - 1)(random_); }

  void Edit(std::string* text) {
    // Pieces that parsers stumble over.
    static const std::vector<std::string> kPieces = {"{",
                                                     "}",
                                                     "[",
                                                     "]",
                                                     ",",
                                                     ":",
                                                     "\"",
                                                     "-",
                                                     "0",
                                                     "1",
                                                     "9",
                                                     ".",
                                                     "e9",
                                                     "null",
                                                     "true",
                                                     "\\",
                                                     " ",
                                                     "\n",
                                                     "\\u0000",
                                                     "\xff",
                                                     "\"F4\"",
                                                     "\"F64\"",
                                                     "\"__metadata__\":{},",
                                                     "18446744073709551615",
                                                     "9223372036854775807",
                                                     "\"shape\":[0],",
                                                     "[0,0]",
                                                     "\"a\":"};
    if (text->empty()) return;
    const size_t at = Below(text->size());
    switch (Below(7)) {
      case 0:
        (*text)[at] = static_cast<char>(Below(256));
        break;
      case 1:
        text->erase(at, 1 + Below(12));
        break;
      case 2:
        text->insert(at, kPieces[Below(kPieces.size())]);
        break;
      case 3:
        text->resize(at);
        break;
      case 4:
        text->insert(at, text->substr(Below(text->size()), 1 + Below(60)));
        break;
      case 5:
        std::swap((*text)[at], (*text)[Below(text->size())]);
        break;
      default:  // a digit for a digit: what most often leaves valid JSON
        for (size_t i = at; i < text->size(); ++i) {
          if ((*text)[i] < '0' || (*text)[i] > '9') continue;
          (*text)[i] = static_cast<char>('0' + Below(10));
          break;
        }
    }
  }

  std::string valid_;
  std::mt19937_64 random_{20260322};
};

// Every rule of the format, written anew from the specification.
void ExpectInvariants(const SafetensorsHeader& header, int64_t data_bytes) {
  std::set<std::string> names;
  int64_t position = 0;
  for (const TensorInfo& tensor : header.tensors) {
    EXPECT_TRUE(names.insert(tensor.name).second);
    EXPECT_FALSE(tensor.name.empty());
    EXPECT_LE(tensor.name.size(), 512u);
    EXPECT_LE(tensor.shape.size(), 8u);
    EXPECT_EQ(tensor.begin, position);
    EXPECT_GE(tensor.end, tensor.begin);
    __int128 bits = DTypeBits(tensor.dtype);
    for (const int64_t size : tensor.shape) {
      EXPECT_GE(size, 0);
      bits *= size;
    }
    EXPECT_TRUE(bits == static_cast<__int128>(tensor.bytes()) * 8);
    position = tensor.end;
  }
  EXPECT_EQ(position, data_bytes);
}

TEST(HeaderMutationTest, NeitherCrashesNorAcceptsABrokenHeader) {
  const std::vector<testing::TensorSketch> tensors = {
      {"model.embed_tokens.weight", DType::kBF16, {8, 4}},
      {"model.norm.weight", DType::kF32, {4}},
      {"scalar", DType::kI64, {}},
      {"empty", DType::kF16, {0, 9}},
      {"codes", DType::kF4, {2, 3}},
      {"lm_head.weight", DType::kBF16, {8, 4}}};
  int64_t data_bytes = 0;
  for (const testing::TensorSketch& tensor : tensors) data_bytes += tensor.bytes();
  const std::string valid = DumpJson(testing::HeaderOf(tensors));
  ASSERT_THAT(ParseSafetensorsHeader(valid, data_bytes), testing::IsOk());

  Mutator mutator(valid);
  int accepted = 0;
  for (int i = 0; i < kMutations; ++i) {
    const std::string mutant = mutator.Next();
    const auto header = ParseSafetensorsHeader(mutant, data_bytes);
    if (header.ok()) {
      ++accepted;
      ExpectInvariants(*header, data_bytes);
    } else {
      EXPECT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument) << mutant;
      EXPECT_FALSE(header.status().message().empty()) << mutant;
      const std::string message(header.status().message());
      EXPECT_TRUE(IsValidUtf8(message)) << mutant;
    }
    if (HasFailure()) FAIL() << "mutant " << i << ": " << mutant;
  }
  // Edits inside names are harmless; nearly all others must be caught.
  EXPECT_GT(accepted, kMutations / 100);
  EXPECT_LT(accepted, kMutations / 2);
  RecordProperty("accepted", accepted);
}

}  // namespace
}  // namespace ptq
