// Single files, shards, and indices that lie.
#include "formats/headers/checkpoint_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "formats/headers/model_files.h"
#include "tests/formats/headers/header_testing.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::FolderTest;
using ::testing::HasSubstr;
using testing::IsOk;
using ::testing::Not;
using testing::SafetensorsFile;
using testing::StatusIs;

constexpr char kIndex[] = "model.safetensors.index.json";

class CheckpointIndexTest : public FolderTest {
 protected:
  void WriteIndex(const std::map<std::string, std::string>& weight_map) {
    Write(kIndex, DumpJson(Json{{"metadata", {{"total_size", 0}}}, {"weight_map", weight_map}}));
  }
  // Two shards with one tensor each, and their index.
  void WriteShards() {
    Write("m-1.safetensors", SafetensorsFile({{"a", DType::kF32, {2}}}));
    Write("m-2.safetensors", SafetensorsFile({{"b", DType::kBF16, {3}}}));
    WriteIndex({{"a", "m-1.safetensors"}, {"b", "m-2.safetensors"}});
  }
  void ExpectRefused(const std::string& first, const std::string& second) {
    EXPECT_THAT(CheckpointIndex::Open(folder_),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         AllOf(HasSubstr(first), HasSubstr(second), Not(HasSubstr(folder_)))));
  }
};

TEST(CheckpointIndexOfTest, HoldsTensorsThatNoFileHas) {
  const CheckpointIndex index =
      CheckpointIndex::Of("folder", {{.name = "a", .dtype = DType::kF32, .shape = {2}, .end = 8},
                                     {.name = "b", .dtype = DType::kF16, .shape = {3}, .end = 6}});
  EXPECT_EQ(index.folder(), "folder");
  EXPECT_TRUE(index.files().empty());
  EXPECT_EQ(index.total_bytes(), 14);
  ASSERT_NE(index.Find("b"), nullptr);
  EXPECT_EQ(index.Find("b")->info.shape, std::vector<int64_t>{3});
  EXPECT_EQ(index.Find("b")->file, "");
  EXPECT_EQ(index.Find("c"), nullptr);
}

TEST_F(CheckpointIndexTest, OpensASingleFile) {
  const std::string bytes = SafetensorsFile({{"a", DType::kF32, {2}}, {"b", DType::kF16, {3}}});
  Write("model.safetensors", bytes);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto index, CheckpointIndex::Open(folder_));
  EXPECT_THAT(index.files(), ElementsAre("model.safetensors"));
  EXPECT_EQ(index.total_bytes(), 14);
  EXPECT_EQ(index.folder(), folder_);
  ASSERT_NE(index.Find("b"), nullptr);
  EXPECT_EQ(index.Find("b")->file, "model.safetensors");
  EXPECT_EQ(index.Find("b")->file_offset, static_cast<int64_t>(bytes.size()) - 6);
  EXPECT_EQ(index.Find("b")->info.name, "b");
  EXPECT_EQ(index.Find("c"), nullptr);
}

TEST_F(CheckpointIndexTest, OpensShards) {
  WriteShards();
  PTQ_ASSERT_OK_AND_ASSIGN(const auto index, CheckpointIndex::Open(folder_));
  EXPECT_THAT(index.files(), ElementsAre("m-1.safetensors", "m-2.safetensors"));
  EXPECT_EQ(index.Find("a")->file, "m-1.safetensors");
  EXPECT_EQ(index.Find("b")->file, "m-2.safetensors");
  EXPECT_EQ(index.total_bytes(), 14);
}

TEST_F(CheckpointIndexTest, FollowsLinksAsInAHubCache) {
  ASSERT_THAT(MakeDirectories(Path("blobs")), IsOk());
  ASSERT_THAT(MakeDirectories(Path("snapshot")), IsOk());
  Write("blobs/0123", SafetensorsFile({{"a", DType::kF32, {2}}}));
  std::filesystem::create_symlink("../blobs/0123", Path("snapshot/model.safetensors"));
  EXPECT_THAT(CheckpointIndex::Open(Path("snapshot")), IsOk());
}

TEST_F(CheckpointIndexTest, RefusesMissingShards) {
  WriteShards();
  std::filesystem::remove(Path("m-2.safetensors"));
  ExpectRefused(kIndex, "\"m-2.safetensors\"");
  // A link to nothing is as good as no file.
  std::filesystem::create_symlink("nowhere", Path("m-2.safetensors"));
  ExpectRefused(kIndex, "\"m-2.safetensors\"");
}

TEST_F(CheckpointIndexTest, RefusesTruncatedShards) {
  WriteShards();
  std::filesystem::resize_file(Path("m-2.safetensors"),
                               std::filesystem::file_size(Path("m-2.safetensors")) - 1);
  ExpectRefused("m-2.safetensors: ", "tensor \"b\"");
}

TEST_F(CheckpointIndexTest, RefusesFilesOutsideOfTheFolder) {
  for (const char* file : {"../m-1.safetensors", "/etc/m-1.safetensors", "x/m-1.safetensors", "..",
                           "", ".", "x\\m-1.safetensors", "m\n.safetensors"}) {
    SCOPED_TRACE(file);
    WriteShards();
    WriteIndex({{"a", file}, {"b", "m-2.safetensors"}});
    ExpectRefused("weight_map", "is not a plain file name");
  }
}

TEST_F(CheckpointIndexTest, RefusesOtherFileTypesInTheIndex) {
  WriteShards();
  WriteIndex({{"a", "m-1.safetensors"}, {"b", "pytorch_model.bin"}});
  ExpectRefused("\"pytorch_model.bin\"", "pickle weights are never loaded");
  WriteIndex({{"a", "m-1.safetensors"}, {"b", "config.json"}});
  ExpectRefused("\"config.json\"", "is not a .safetensors file");
}

TEST_F(CheckpointIndexTest, RefusesATensorInTwoShardsOrInNone) {
  WriteShards();
  Write("m-2.safetensors", SafetensorsFile({{"a", DType::kF32, {2}}, {"b", DType::kBF16, {3}}}));
  ExpectRefused("tensor \"a\" is in two shards", "m-2.safetensors");
  WriteShards();
  WriteIndex({{"a", "m-1.safetensors"}, {"b", "m-2.safetensors"}, {"c", "m-2.safetensors"}});
  ExpectRefused("tensor \"c\" is in none of the shards", kIndex);
  WriteIndex({{"a", "m-2.safetensors"}, {"b", "m-1.safetensors"}});
  ExpectRefused("says that tensor \"a\" is in \"m-2.safetensors\"", "but it is in");
}

TEST_F(CheckpointIndexTest, RefusesIndicesThatAreNone) {
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"", "not valid JSON"},
      {"[]", "not a JSON object"},
      {"7", "not a JSON object"},
      {"{}", "weight_map is missing"},
      {std::string("{}\0{}", 5), "not valid JSON at byte 3"},
      {R"({"weight_map":[]})", "weight_map must be an object, not an array"},
      {R"({"weight_map":null})", "weight_map must be an object, not null"},
      {R"({"weight_map":{}})", "weight_map is missing or empty"},
      {R"({"metadata":{"weight_map":{"a":"m-1.safetensors"}}})", "weight_map is missing"},
      {R"({"weight_map":{"a":1}})", "tensor \"a\" must be a string, not a number"},
      {R"({"weight_map":{"a":{"b":"c"}}})", "tensor \"a\" must be a string, not an object"},
      {R"({"weight_map":{"a":["c"]}})", "tensor \"a\" must be a string, not an array"},
      {R"({"weight_map":{"a":"m-1.safetensors","a":"m-2.safetensors"}})", "\"a\" is repeated"},
      {R"({"weight_map":{"a":"m-1.safetensors"},"weight_map":{}})", "\"weight_map\" is repeated"},
      {R"({"metadata":)" + std::string(100'000, '['), "nested deeper than 8"},
      {R"({"weight_map":{"a":"m-1.safetensors"}} x)", "not valid JSON at byte"}};
  for (const auto& [text, why] : bad) {
    SCOPED_TRACE(text.substr(0, 100));
    Write(kIndex, text);
    ExpectRefused(std::string(kIndex) + ": ", why);
  }
}

TEST_F(CheckpointIndexTest, SkipsWhatElseAnIndexSays) {
  WriteShards();
  Write(kIndex, R"({"metadata":{"total_size":14,"deep":[{"x":[1,-1,2.5,null,true]}]},)"
                R"("weight_map":{"b":"m-2.safetensors","a":"m-1.safetensors"},"extra":"text"})");
  PTQ_ASSERT_OK_AND_ASSIGN(const auto index, CheckpointIndex::Open(folder_));
  EXPECT_EQ(index.tensors().size(), 2u);
}

TEST_F(CheckpointIndexTest, RefusesFoldersWithoutWeights) {
  ExpectRefused("no weights", "model.safetensors");
  Write("model-q4.gguf", "GGUF");
  ExpectRefused("GGUF", "model-q4.gguf");
  std::filesystem::remove(Path("model-q4.gguf"));
  for (const char* pickle : {"pytorch_model.bin", "consolidated.00.pth", "model.pt", "m.ckpt"}) {
    Write(pickle, "PK");
    ExpectRefused("only pickle weights", pickle);
    EXPECT_THAT(SelectModelFiles(folder_, nullptr),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(pickle)));
    std::filesystem::remove(Path(pickle));
  }
}

TEST_F(CheckpointIndexTest, RefusesPickleByContentAndEmptyCheckpoints) {
  Write("model.safetensors", "PK\x03\x04" + std::string(60, 'x'));
  ExpectRefused("model.safetensors: ", "ZIP");
  Write("model.safetensors", SafetensorsFile({}));
  ExpectRefused("no tensors", "");
}

TEST_F(CheckpointIndexTest, AMissingFolderIsNotFound) {
  EXPECT_THAT(CheckpointIndex::Open(Path("none")),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
  EXPECT_THAT(SelectModelFiles(Path("none"), nullptr),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
}

TEST_F(CheckpointIndexTest, SelectsWhatBelongsToAModel) {
  WriteShards();
  for (const char* name :
       {"config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "merges.txt",
        "vocab.txt", "chat_template.jinja", "qwen.tiktoken", "README.md", "pytorch_model.bin",
        "stray.safetensors", "model.safetensors", ".hidden.json", "modeling_evil.py"}) {
    Write(name, "x");
  }
  ASSERT_THAT(MakeDirectories(Path("original")), IsOk());
  ASSERT_THAT(MakeDirectories(Path("folder.json")), IsOk());
  std::vector<std::string> skipped;
  PTQ_ASSERT_OK_AND_ASSIGN(const auto files, SelectModelFiles(folder_, &skipped));
  EXPECT_THAT(files,
              ElementsAre("chat_template.jinja", "config.json", "generation_config.json",
                          "m-1.safetensors", "m-2.safetensors", "merges.txt", kIndex,
                          "qwen.tiktoken", "tokenizer.json", "tokenizer.model", "vocab.txt"));
  EXPECT_THAT(skipped, ElementsAre(".hidden.json", "README.md", "folder.json", "model.safetensors",
                                   "modeling_evil.py", "original", "pytorch_model.bin",
                                   "stray.safetensors"));
}

TEST_F(CheckpointIndexTest, SelectsTheSingleFileWhereThereIsNoIndex) {
  Write("model.safetensors", "x");
  Write("stray.safetensors", "x");
  std::vector<std::string> skipped;
  PTQ_ASSERT_OK_AND_ASSIGN(const auto files, SelectModelFiles(folder_, &skipped));
  EXPECT_THAT(files, ElementsAre("model.safetensors"));
  EXPECT_THAT(skipped, ElementsAre("stray.safetensors"));
}

TEST_F(CheckpointIndexTest, SelectsAGgufFileWhereThereAreNoSafetensors) {
  Write("model-q4.gguf", "GGUF");
  Write("config.json", "{}");
  Write("README.md", "x");
  PTQ_ASSERT_OK_AND_ASSIGN(const auto files, SelectModelFiles(folder_, nullptr));
  EXPECT_THAT(files, ElementsAre("config.json", "model-q4.gguf"));
  Write("model-q8.gguf", "GGUF");
  EXPECT_THAT(SelectModelFiles(folder_, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("name one of them")));
  EXPECT_EQ(ModelFolder(Path("model-q8.gguf")), folder_);
  EXPECT_EQ(ModelFolder("model-q8.gguf"), ".");
  PTQ_ASSERT_OK_AND_ASSIGN(const auto named, SelectModelFiles(Path("model-q8.gguf"), nullptr));
  EXPECT_THAT(named, ElementsAre("config.json", "model-q8.gguf"));
  // Beside an original checkpoint they are somebody else's.
  Write("model.safetensors", "x");
  PTQ_ASSERT_OK_AND_ASSIGN(const auto original, SelectModelFiles(folder_, nullptr));
  EXPECT_THAT(original, ElementsAre("config.json", "model.safetensors"));
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string none, FindGgufFile(folder_));
  EXPECT_EQ(none, "");
}

TEST_F(CheckpointIndexTest, SelectionRefusesTheSameIndices) {
  WriteShards();
  WriteIndex({{"a", "../../etc/passwd"}});
  EXPECT_THAT(SelectModelFiles(folder_, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("../../etc/passwd")));
  WriteIndex({{"a", "m-9.safetensors"}});
  EXPECT_THAT(SelectModelFiles(folder_, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("m-9.safetensors")));
}

}  // namespace
}  // namespace ptq
