// Text to windows of token ids, by the example model's tokenizer.
#include "formats/token_dataset.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "common/file.h"
#include "formats/safetensors_writer.h"
#include "formats/tokenizer.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::IsOk;
using testing::StatusIs;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
const std::string kModel = std::string(PTQ_SOURCE_DIR) + "/examples/wikilm-llama-6m";

TEST(TokenizerTest, IdsAreThoseOfTransformers) {
  // AutoTokenizer.from_pretrained(kModel)(text, add_special_tokens=False), transformers 5.23;
  // tests/interop/tokens_test.py compares whole files.
  PTQ_ASSERT_OK_AND_ASSIGN(const auto tokenizer, Tokenizer::Open(kModel));
  PTQ_ASSERT_OK_AND_ASSIGN(auto ids, tokenizer->Encode("The quick brown fox."));
  EXPECT_THAT(ids, ElementsAre(420, 2766, 861, 570, 278, 1575, 15));
  PTQ_ASSERT_OK_AND_ASSIGN(ids, tokenizer->Encode("naïve café — 東京 🙂"));
  EXPECT_THAT(ids, ElementsAre(2390, 129, 109, 329, 276, 1984, 1091, 816, 222, 164, 253, 111, 162,
                               120, 107, 222, 174, 255, 249, 226));
  PTQ_ASSERT_OK_AND_ASSIGN(ids, tokenizer->Encode(""));
  EXPECT_THAT(ids, IsEmpty());
}

TEST(TokenizerTest, FindsTokensByContent) {
  PTQ_ASSERT_OK_AND_ASSIGN(const auto tokenizer, Tokenizer::Open(kModel));
  PTQ_ASSERT_OK_AND_ASSIGN(const int64_t id, tokenizer->TokenId("<|end_of_text|>"));
  EXPECT_EQ(id, 1);
  EXPECT_THAT(tokenizer->TokenId("<none>"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("<none>")));
}

TEST(TokenizerTest, BadInputIsAnErrorNotACrash) {
  PTQ_ASSERT_OK_AND_ASSIGN(const auto tokenizer, Tokenizer::Open(kModel));
  EXPECT_THAT(tokenizer->Encode("\xff\xfe"), StatusIs(kInvalid, HasSubstr("UTF-8")));
  EXPECT_THAT(tokenizer->TokenId("\xff"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("token")));
}

class TokenDatasetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/token_dataset_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_THAT(RemoveTree(folder_), IsOk());
    ASSERT_THAT(MakeDirectories(folder_), IsOk());
    config_.vocab_size = 4096;
    config_.eos_token_ids = {1, 5};
  }
  std::string Write(const std::string& name, const std::string& data) {
    EXPECT_THAT(WriteFileAtomically(folder_ + "/" + name, data), IsOk());
    return folder_ + "/" + name;
  }
  std::string WriteIds(const at::Tensor& ids) {
    const std::string path = folder_ + "/ids.safetensors";
    EXPECT_THAT(WriteSafetensors(path, std::vector<NamedTensor>{{"input_ids", ids}}, {}), IsOk());
    return path;
  }
  std::string folder_;
  ModelConfig config_;
};

// Three documents of 7, 7 and 1 tokens ("The quick brown fox." is 7).
constexpr char kLines[] =
    "{\"text\": \"The quick brown fox.\"}\n\n{\"id\": 3, \"text\": \"The quick brown fox.\"}\n"
    "{\"text\": \".\"}";

TEST_F(TokenDatasetTest, OpeningADamagedTokenizerIsInvalid) {
  EXPECT_THAT(Tokenizer::Open(folder_),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("tokenizer")));
  Write("tokenizer.json", "");
  EXPECT_THAT(Tokenizer::Open(folder_), StatusIs(kInvalid, HasSubstr("empty")));
  Write("tokenizer.json", "{\"model\": {\"type\": \"BPE\", \"vocab\": 3}}");
  EXPECT_THAT(Tokenizer::Open(folder_), StatusIs(kInvalid, HasSubstr("tokenizer.json")));
  Write("tokenizer.json", std::string(100000, '['));
  EXPECT_THAT(Tokenizer::Open(folder_), StatusIs(kInvalid, HasSubstr("tokenizer.json")));
}

TEST_F(TokenDatasetTest, DocumentsEndWithEosAndAreJoined) {
  const std::string path = Write("c.jsonl", kLines);
  PTQ_ASSERT_OK_AND_ASSIGN(const TokenWindows windows,
                           LoadCalibrationWindows(path, kModel, config_, 3, 6));
  EXPECT_TRUE(windows.ids.equal(at::tensor({420, 2766, 861, 570, 278, 1575, 15, 1, 420, 2766, 861,
                                            570, 278, 1575, 15, 1, 15, 1},
                                           at::kLong)
                                    .view({3, 6})));
  EXPECT_EQ(windows.total_tokens, 18);
}

TEST_F(TokenDatasetTest, TooFewTokensSaysHowMany) {
  const std::string path = Write("c.jsonl", kLines);
  EXPECT_THAT(LoadCalibrationWindows(path, kModel, config_, 4, 6),
              StatusIs(kInvalid, AllOf(HasSubstr("18 tokens"), HasSubstr("4 samples of 6"))));
  EXPECT_THAT(LoadCalibrationWindows(Write("e.txt", "."), kModel, config_, 1, 512),
              StatusIs(kInvalid, HasSubstr("2 tokens")));
}

TEST_F(TokenDatasetTest, ATextFileIsOneDocument) {
  const std::string path = Write("c.txt", "The quick brown fox.");
  PTQ_ASSERT_OK_AND_ASSIGN(const TokenWindows windows,
                           LoadCalibrationWindows(path, kModel, config_, 2, 4));
  EXPECT_TRUE(windows.ids.equal(
      at::tensor({420, 2766, 861, 570, 278, 1575, 15, 1}, at::kLong).view({2, 4})));
}

// Windows of `samples` and `extra`, checked to begin with those of `samples` alone.
int64_t CountWithExtra(const std::string& path, const std::string& model, const ModelConfig& config,
                       int64_t samples, int64_t length, int64_t extra) {
  const auto plain = LoadCalibrationWindows(path, model, config, samples, length);
  const auto more = LoadCalibrationWindows(path, model, config, samples, length, extra);
  EXPECT_THAT(plain, IsOk());
  EXPECT_THAT(more, IsOk());
  if (!plain.ok() || !more.ok()) return -1;
  EXPECT_EQ(plain->ids.size(0), samples);
  EXPECT_EQ(more->ids.size(1), length);
  EXPECT_TRUE(more->ids.is_contiguous());
  EXPECT_TRUE(more->ids.narrow(0, 0, samples).equal(plain->ids));
  return more->ids.size(0);
}

TEST_F(TokenDatasetTest, ExtraWindowsOfJsonLinesAreThoseThatThereAre) {
  const std::string path = Write("c.jsonl", kLines);  // three windows of 6
  EXPECT_EQ(CountWithExtra(path, kModel, config_, 3, 6, 2), 3) << "exactly the samples";
  EXPECT_EQ(CountWithExtra(path, kModel, config_, 1, 6, 5), 3) << "fewer extra ones";
  EXPECT_EQ(CountWithExtra(path, kModel, config_, 2, 6, 1), 3);
  EXPECT_EQ(CountWithExtra(path, kModel, config_, 1, 6, 1), 2) << "more than asked for";
  EXPECT_EQ(CountWithExtra(path, kModel, config_, 2, 7, 1), 2) << "an incomplete one is none";
  PTQ_ASSERT_OK_AND_ASSIGN(const TokenWindows some,
                           LoadCalibrationWindows(path, kModel, config_, 1, 6, 1));
  EXPECT_EQ(some.total_tokens, 16) << "two documents are read";
  EXPECT_TRUE(some.ids[1].equal(at::tensor({15, 1, 420, 2766, 861, 570}, at::kLong)));
  EXPECT_THAT(LoadCalibrationWindows(path, kModel, config_, 4, 6, 2),
              StatusIs(kInvalid, AllOf(HasSubstr("18 tokens"), HasSubstr("4 samples of 6"))));
}

TEST_F(TokenDatasetTest, ExtraWindowsOfATextAreThoseThatThereAre) {
  const std::string path = Write("c.txt", "The quick brown fox.");  // four windows of 2
  EXPECT_EQ(CountWithExtra(path, kModel, config_, 4, 2, 3), 4) << "exactly the samples";
  EXPECT_EQ(CountWithExtra(path, kModel, config_, 2, 2, 3), 4) << "fewer extra ones";
  EXPECT_EQ(CountWithExtra(path, kModel, config_, 2, 2, 1), 3) << "more than asked for";
  EXPECT_THAT(LoadCalibrationWindows(path, kModel, config_, 5, 2, 1),
              StatusIs(kInvalid, HasSubstr("5 samples of 2")));
}

TEST_F(TokenDatasetTest, ExtraRowsOfATokenFileAreThoseThatThereAre) {
  const at::Tensor ids = at::arange(12, at::kInt).view({3, 4});
  const std::string path = WriteIds(ids);
  EXPECT_EQ(CountWithExtra(path, folder_, config_, 3, 4, 2), 3) << "exactly the samples";
  EXPECT_EQ(CountWithExtra(path, folder_, config_, 1, 4, 5), 3) << "fewer extra ones";
  EXPECT_EQ(CountWithExtra(path, folder_, config_, 1, 3, 1), 2) << "more than asked for";
  PTQ_ASSERT_OK_AND_ASSIGN(const TokenWindows cut,
                           LoadCalibrationWindows(path, folder_, config_, 1, 3, 1));
  EXPECT_TRUE(cut.ids.equal(ids.to(at::kLong).narrow(0, 0, 2).narrow(1, 0, 3)));
  EXPECT_THAT(LoadCalibrationWindows(path, folder_, config_, 4, 4, 1),
              StatusIs(kInvalid, AllOf(HasSubstr("3 samples of 4"), HasSubstr("4 of 4 were"))));
}

TEST_F(TokenDatasetTest, BadLinesAreNamed) {
  const auto load = [this](const std::string& data) {
    return LoadCalibrationWindows(Write("bad.jsonl", data), kModel, config_, 128, 512).status();
  };
  EXPECT_THAT(load("{\"text\": \"a\"}\n{\"text\": 1}"), StatusIs(kInvalid, HasSubstr("line 2: ")));
  EXPECT_THAT(load("\n\n{\"text\": \"a\"\n"), StatusIs(kInvalid, HasSubstr("line 3: ")));
  EXPECT_THAT(load("{\"text\": \"\xff\"}"),
              StatusIs(kInvalid, AllOf(HasSubstr("line 1: "), HasSubstr("UTF-8"))));
  EXPECT_THAT(LoadCalibrationWindows(Write("bad.txt", "\xff"), kModel, config_, 1, 1),
              StatusIs(kInvalid, HasSubstr("UTF-8")));
  EXPECT_THAT(LoadCalibrationWindows(Write("bad.csv", "a"), kModel, config_, 1, 1),
              StatusIs(kInvalid, HasSubstr(".jsonl")));
}

TEST_F(TokenDatasetTest, EosComesFromTheTokenizerWhereTheConfigNamesNone) {
  ASSERT_THAT(CopyFileAtomically(kModel + "/tokenizer.json", folder_ + "/tokenizer.json"), IsOk());
  const std::string path = Write("c.txt", ".");
  config_.eos_token_ids.clear();
  EXPECT_THAT(LoadCalibrationWindows(path, folder_, config_, 1, 2),
              StatusIs(kInvalid, HasSubstr("end-of-sequence")));
  for (const char* token : {"\"<|end_of_text|>\"", "{\"content\": \"<|end_of_text|>\"}"}) {
    Write("tokenizer_config.json", std::string("{\"eos_token\": ") + token + "}");
    PTQ_ASSERT_OK_AND_ASSIGN(const TokenWindows windows,
                             LoadCalibrationWindows(path, folder_, config_, 1, 2));
    EXPECT_TRUE(windows.ids.equal(at::tensor({15, 1}, at::kLong).view({1, 2}))) << token;
  }
  Write("tokenizer_config.json", "{\"eos_token\": null}");
  EXPECT_THAT(LoadCalibrationWindows(path, folder_, config_, 1, 2),
              StatusIs(kInvalid, HasSubstr("end-of-sequence")));
}

TEST_F(TokenDatasetTest, TextWithoutATokenizerIsRefusedWithAHint) {
  const std::string path = Write("c.txt", "a");
  EXPECT_THAT(LoadCalibrationWindows(path, folder_, config_, 1, 1),
              StatusIs(kInvalid, HasSubstr("input_ids")));
  EXPECT_THAT(LoadEvaluationWindows(path, folder_, config_, 1, 1),
              StatusIs(kInvalid, HasSubstr("input_ids")));
}

TEST_F(TokenDatasetTest, TokenFilesNeedNoTokenizerAndAreCut) {
  const at::Tensor ids = at::arange(12, at::kInt).view({3, 4});
  const std::string path = WriteIds(ids);
  PTQ_ASSERT_OK_AND_ASSIGN(const TokenWindows windows,
                           LoadCalibrationWindows(path, folder_, config_, 2, 3));
  EXPECT_TRUE(windows.ids.equal(ids.to(at::kLong).narrow(0, 0, 2).narrow(1, 0, 3)));
  EXPECT_TRUE(windows.ids.is_contiguous());
  EXPECT_EQ(windows.total_tokens, 12);
  EXPECT_THAT(LoadCalibrationWindows(path, folder_, config_, 4, 4),
              StatusIs(kInvalid, HasSubstr("3 samples of 4")));
  EXPECT_THAT(LoadCalibrationWindows(path, folder_, config_, 3, 5),
              StatusIs(kInvalid, HasSubstr("3 samples of 4")));
  PTQ_ASSERT_OK_AND_ASSIGN(const TokenWindows all,
                           LoadEvaluationWindows(path, folder_, config_, 0, 4));
  EXPECT_EQ(all.ids.size(0), 3);
}

TEST_F(TokenDatasetTest, IdsOutsideOfTheVocabularyAreRefused) {
  config_.vocab_size = 10;
  const std::string path = WriteIds(at::arange(12, at::kLong).view({3, 4}));
  EXPECT_THAT(LoadCalibrationWindows(path, folder_, config_, 3, 4),
              StatusIs(kInvalid, AllOf(HasSubstr("token id 10"), HasSubstr("vocabulary of 10"))));
  EXPECT_THAT(
      LoadCalibrationWindows(WriteIds(at::full({1, 1}, -1, at::kLong)), folder_, config_, 1, 1),
      StatusIs(kInvalid, HasSubstr("token id -1")));
  EXPECT_THAT(LoadCalibrationWindows(WriteIds(at::zeros({1, 1})), folder_, config_, 1, 1),
              StatusIs(kInvalid, HasSubstr("F32")));
  EXPECT_THAT(LoadEvaluationWindows(Write("e.txt", "The quick"), kModel, config_, 0, 1),
              StatusIs(kInvalid, HasSubstr("vocabulary of 10")));
}

TEST_F(TokenDatasetTest, EvaluationDropsTheIncompleteWindowAndAddsNoEos) {
  const std::string path = Write("e.txt", "The quick brown fox.");
  PTQ_ASSERT_OK_AND_ASSIGN(const TokenWindows all,
                           LoadEvaluationWindows(path, kModel, config_, 0, 3));
  EXPECT_TRUE(all.ids.equal(at::tensor({420, 2766, 861, 570, 278, 1575}, at::kLong).view({2, 3})));
  EXPECT_EQ(all.total_tokens, 7);
  PTQ_ASSERT_OK_AND_ASSIGN(const TokenWindows one,
                           LoadEvaluationWindows(path, kModel, config_, 1, 3));
  EXPECT_EQ(one.ids.size(0), 1);
  EXPECT_THAT(LoadEvaluationWindows(path, kModel, config_, 0, 8),
              StatusIs(kInvalid, HasSubstr("7 tokens")));
}

TEST_F(TokenDatasetTest, EvaluationJoinsJsonTextsByNewlines) {
  PTQ_ASSERT_OK_AND_ASSIGN(
      const TokenWindows joined,
      LoadEvaluationWindows(Write("e.jsonl", "{\"text\": \"a b\"}\n{\"text\": \"c\"}"), kModel,
                            config_, 0, 1));
  PTQ_ASSERT_OK_AND_ASSIGN(const TokenWindows plain,
                           LoadEvaluationWindows(Write("e.txt", "a b\nc"), kModel, config_, 0, 1));
  EXPECT_TRUE(joined.ids.equal(plain.ids));
}

TEST_F(TokenDatasetTest, SizesThatOverflowAreRefused) {
  const std::string path = Write("c.txt", "a");
  EXPECT_THAT(LoadCalibrationWindows(path, kModel, config_, int64_t{1} << 40, int64_t{1} << 40),
              StatusIs(kInvalid, HasSubstr("can't be taken")));
  EXPECT_THAT(LoadCalibrationWindows(path, kModel, config_, 0, 4),
              StatusIs(kInvalid, HasSubstr("can't be taken")));
}

}  // namespace
}  // namespace ptq
