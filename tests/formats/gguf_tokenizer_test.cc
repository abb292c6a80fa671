// A tokenizer.json becomes what llama.cpp reads, or is refused with the part that it lacks.
#include "formats/gguf_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/json.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

constexpr auto kFailedPrecondition = absl::StatusCode::kFailedPrecondition;

template <typename T>
T Get(const GgufMetadata& metadata, const std::string& key) {
  for (const auto& [name, value] : metadata) {
    if (name == "tokenizer." + key) return std::get<T>(value);
  }
  ADD_FAILURE() << "no " << key;
  return T();
}

bool Has(const GgufMetadata& metadata, const std::string& key) {
  for (const auto& entry : metadata) {
    if (entry.first == "tokenizer." + key) return true;
  }
  return false;
}

class GgufTokenizerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/gguf_tokenizer_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_THAT(RemoveTree(folder_), IsOk());
    ASSERT_THAT(MakeDirectories(folder_), IsOk());
  }
  void Write(const std::string& name, const Json& json) const {
    ASSERT_THAT(WriteFileAtomically(folder_ + "/" + name, DumpJson(json)), IsOk());
  }
  absl::StatusOr<GgufMetadata> Convert(const Json& tokenizer, int64_t vocab_size = 7) const {
    Write("tokenizer.json", tokenizer);
    return GgufTokenizerMetadata(folder_, vocab_size);
  }

  // GPT-2's kind, with an id that is not used.
  static Json ByteLevel() {
    return {{"added_tokens",
             {{{"id", 5}, {"content", "<end>"}, {"special", true}},
              {{"id", 6}, {"content", "<word>"}, {"special", false}}}},
            {"normalizer", nullptr},
            {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
            {"post_processor", nullptr},
            {"model",
             {{"type", "BPE"},
              {"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}, {"aab", 3}, {"<end>", 5}}},
              {"merges", {"a b", "a ab"}}}}};
  }
  // Llama 2's kind.
  static Json SentencePiece() {
    return {
        {"added_tokens",
         {{{"id", 0}, {"content", "<unk>"}, {"special", true}},
          {{"id", 1}, {"content", "<s>"}, {"special", true}}}},
        {"normalizer",
         {{"type", "Sequence"},
          {"normalizers",
           {{{"type", "Prepend"}, {"prepend", "\u2581"}},
            {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}}}}}},
        {"pre_tokenizer", nullptr},
        {"post_processor",
         {{"type", "TemplateProcessing"},
          {"single",
           {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
            {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}}}},
        {"model",
         {{"type", "BPE"},
          {"byte_fallback", true},
          {"unk_token", "<unk>"},
          {"vocab",
           {{"<unk>", 0}, {"<s>", 1}, {"<0x0A>", 2}, {"a", 3}, {"b", 4}, {"ab", 5}, {"bab", 6}}},
          {"merges", Json::array({Json::array({"a", "b"}), Json::array({"b", "ab"}),
                                  Json::array({"ba", "b"})})}}}};
  }

  std::string folder_;
};

TEST_F(GgufTokenizerTest, ByteLevelBpeKeepsTokensAndMerges) {
  Write("tokenizer_config.json",
        {{"eos_token", {{"content", "<end>"}}}, {"chat_template", "{{ messages }}"}});
  const auto metadata = Convert(ByteLevel());
  ASSERT_THAT(metadata, IsOk());
  EXPECT_EQ(Get<std::string>(*metadata, "ggml.model"), "gpt2");
  EXPECT_EQ(Get<std::string>(*metadata, "ggml.pre"), "gpt-2");
  EXPECT_THAT(Get<std::vector<std::string>>(*metadata, "ggml.tokens"),
              ElementsAre("a", "b", "ab", "aab", "[PAD4]", "<end>", "<word>"));
  EXPECT_THAT(Get<std::vector<int32_t>>(*metadata, "ggml.token_type"),
              ElementsAre(1, 1, 1, 1, 5, 3, 4));
  EXPECT_THAT(Get<std::vector<std::string>>(*metadata, "ggml.merges"), ElementsAre("a b", "a ab"));
  EXPECT_EQ(Get<uint32_t>(*metadata, "ggml.eos_token_id"), 5u);
  EXPECT_FALSE(Has(*metadata, "ggml.bos_token_id"));
  EXPECT_FALSE(Get<bool>(*metadata, "ggml.add_bos_token"));
  EXPECT_EQ(Get<std::string>(*metadata, "chat_template"), "{{ messages }}");
}

TEST_F(GgufTokenizerTest, SentencePieceGetsScoresInTheOrderOfItsMerges) {
  Write("config.json", {{"bos_token_id", 1}, {"eos_token_id", {1, 2}}});
  const auto metadata = Convert(SentencePiece());
  ASSERT_THAT(metadata, IsOk());
  EXPECT_EQ(Get<std::string>(*metadata, "ggml.model"), "llama");
  EXPECT_THAT(Get<std::vector<float>>(*metadata, "ggml.scores"),
              ElementsAre(0, 0, 0, 0, 0, -1, -2));
  EXPECT_THAT(Get<std::vector<int32_t>>(*metadata, "ggml.token_type"),
              ElementsAre(2, 3, 6, 1, 1, 1, 1));
  EXPECT_TRUE(Get<bool>(*metadata, "ggml.add_space_prefix"));
  EXPECT_EQ(Get<uint32_t>(*metadata, "ggml.bos_token_id"), 1u);
  EXPECT_EQ(Get<uint32_t>(*metadata, "ggml.eos_token_id"), 1u);
  EXPECT_TRUE(Get<bool>(*metadata, "ggml.add_bos_token"));
}

TEST_F(GgufTokenizerTest, TheConfigSaysWhetherTextBeginsWithBos) {
  Write("tokenizer_config.json", {{"bos_token", "<s>"}, {"add_bos_token", false}});
  const auto metadata = Convert(SentencePiece());
  ASSERT_THAT(metadata, IsOk());
  EXPECT_FALSE(Get<bool>(*metadata, "ggml.add_bos_token"));
}

TEST_F(GgufTokenizerTest, WhatLlamaCppLacksIsRefused) {
  Json tokenizer = ByteLevel();
  tokenizer["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"}, {"pattern", {{"Regex", "[a-q]+"}}}, {"behavior", "Isolated"}},
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  EXPECT_THAT(Convert(tokenizer), StatusIs(kFailedPrecondition, HasSubstr("regex \"[a-q]+\"")));
  tokenizer = ByteLevel();
  tokenizer["normalizer"] = {{"type", "Lowercase"}};
  EXPECT_THAT(Convert(tokenizer), StatusIs(kFailedPrecondition, HasSubstr("normalizer \"Lower")));
  tokenizer = ByteLevel();
  tokenizer["model"] = {{"type", "Unigram"}};
  EXPECT_THAT(Convert(tokenizer), StatusIs(kFailedPrecondition, HasSubstr("\"Unigram\"")));
}

TEST_F(GgufTokenizerTest, DamagedFilesAreRefused) {
  EXPECT_THAT(Convert(ByteLevel(), 3), StatusIs(absl::StatusCode::kInvalidArgument,
                                                HasSubstr("below the model's vocab_size")));
  Json tokenizer = ByteLevel();
  tokenizer["model"]["merges"] = {"ab"};
  EXPECT_THAT(Convert(tokenizer),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no pair")));
}

TEST_F(GgufTokenizerTest, AModelWithoutATokenizerTakesIds) {
  const auto metadata = GgufTokenizerMetadata(folder_, 7);
  ASSERT_THAT(metadata, IsOk());
  EXPECT_EQ(Get<std::string>(*metadata, "ggml.model"), "no_vocab");
}

}  // namespace
}  // namespace ptq
