// What CreateModel and CreateDataset say about inputs, within a second even for large ones.
#include "formats/headers/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/formats/headers/header_testing.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::AllOf;
using testing::CpuSeconds;
using ::testing::ElementsAre;
using testing::FolderTest;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::IsOk;
using testing::SafetensorsFile;
using ::testing::StartsWith;
using testing::StatusIs;
using testing::TensorsOf;
using testing::TinyConfig;
using testing::TinyModelConfig;

class InspectCheckpointTest : public FolderTest {
 protected:
  void WriteModel(const Json& changes, const std::vector<testing::TensorSketch>& tensors) {
    Json json = TinyConfig();
    json.update(changes);
    Write("config.json", DumpJson(json));
    Write("model.safetensors", SafetensorsFile(tensors));
  }
  void ExpectRefused(const std::string& why,
                     absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    EXPECT_THAT(InspectCheckpoint(folder_), StatusIs(code, HasSubstr(why)));
  }
  const std::vector<testing::TensorSketch> tensors_ = TensorsOf(TinyModelConfig());
};

TEST_F(InspectCheckpointTest, DescribesAGoodCheckpoint) {
  WriteModel(Json::object(), tensors_);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto inspection, InspectCheckpoint(folder_));
  EXPECT_EQ(inspection.config.num_hidden_layers, 2);
  EXPECT_EQ(inspection.index.tensors().size(), tensors_.size());
  EXPECT_FALSE(inspection.has_tokenizer);
  EXPECT_THAT(inspection.warnings, IsEmpty());
  Write("tokenizer.json", "{}");
  PTQ_ASSERT_OK_AND_ASSIGN(const auto again, InspectCheckpoint(folder_));
  EXPECT_TRUE(again.has_tokenizer);
}

TEST_F(InspectCheckpointTest, DescribesTheExampleModel) {
  PTQ_ASSERT_OK_AND_ASSIGN(const auto inspection, InspectCheckpoint(std::string(PTQ_SOURCE_DIR) +
                                                                    "/examples/wikilm-llama-6m"));
  EXPECT_EQ(inspection.config.num_hidden_layers, 6);
  EXPECT_EQ(inspection.config.head_dim, 64);
  EXPECT_TRUE(inspection.config.tie_word_embeddings);
  EXPECT_THAT(inspection.config.eos_token_ids, ElementsAre(1));
  EXPECT_TRUE(inspection.has_tokenizer);
  EXPECT_THAT(inspection.warnings, IsEmpty());
}

TEST_F(InspectCheckpointTest, RefusesWhatTheConfigRefuses) {
  ExpectRefused("config.json is missing");
  WriteModel({{"model_type", "mamba"}}, tensors_);
  ExpectRefused("mamba", absl::StatusCode::kUnimplemented);
  WriteModel({{"quantization_config", {{"quant_method", "awq"}}}}, tensors_);
  ExpectRefused("already quantized");
  WriteModel({{"num_hidden_layers", 3}}, tensors_);
  ExpectRefused("model.layers.2.");
  EXPECT_THAT(InspectCheckpoint(Path("none")),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
}

TEST_F(InspectCheckpointTest, WarnsAboutWhatItLeavesOut) {
  auto tensors = tensors_;
  tensors.push_back({"score.weight", DType::kBF16, {1, 16}});
  WriteModel(
      {{"tie_word_embeddings", true}, {"auto_map", {{"AutoModel", "x.Y"}}}, {"dtype", "float16"}},
      tensors);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto inspection, InspectCheckpoint(folder_));
  EXPECT_THAT(inspection.warnings,
              ElementsAre(HasSubstr("auto_map"), HasSubstr("lm_head.weight"),
                          HasSubstr("score.weight"), HasSubstr("config.json says F16")));
}

TEST_F(InspectCheckpointTest, AHundredThousandTensorsTakeLessThanASecond) {
  const Json deep = {{"num_hidden_layers", 11'200},
                     {"hidden_size", 2},
                     {"intermediate_size", 2},
                     {"num_attention_heads", 1},
                     {"num_key_value_heads", nullptr}};
  const auto tensors = TensorsOf(TinyModelConfig(deep));
  ASSERT_GT(tensors.size(), 100'000u);
  // In eleven shards with an index, as such a model would come.
  Json json = TinyConfig();
  json.update(deep);
  Write("config.json", DumpJson(json));
  Json weight_map = Json::object();
  for (size_t begin = 0; begin < tensors.size(); begin += 10'000) {
    const std::string name = "model-" + std::to_string(begin) + ".safetensors";
    const std::vector<testing::TensorSketch> part(
        tensors.begin() + static_cast<std::ptrdiff_t>(begin),
        tensors.begin() + static_cast<std::ptrdiff_t>(std::min(begin + 10'000, tensors.size())));
    Write(name, SafetensorsFile(part));
    for (const auto& tensor : part) {
      weight_map.get_ref<Json::object_t&>().emplace_back(tensor.name, name);
    }
  }
  Write("model.safetensors.index.json", DumpJson(Json{{"weight_map", weight_map}}));
  const double start = CpuSeconds();
  ASSERT_THAT(InspectCheckpoint(folder_), IsOk());
  const double seconds = CpuSeconds() - start;
  EXPECT_LT(seconds, 1.0);
  RecordProperty("milliseconds", static_cast<int>(seconds * 1000));
}

class InspectDatasetTest : public FolderTest {
 protected:
  absl::StatusOr<DatasetInspection> Inspect(const std::string& name, const std::string& data) {
    Write("blob", data);
    return InspectDataset(Path("blob"), name);
  }
  void ExpectRefused(const std::string& name, const std::string& data, const std::string& why) {
    EXPECT_THAT(Inspect(name, data),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         AllOf(StartsWith("\"" + name + "\""), HasSubstr(why))))
        << data.substr(0, 100);
  }
};

TEST_F(InspectDatasetTest, CountsJsonLines) {
  PTQ_ASSERT_OK_AND_ASSIGN(
      const auto dataset,
      Inspect("c.jsonl", "{\"text\":\"one\"}\r\n\n{\"id\":2,\"text\":\"zwölf\"}"));
  EXPECT_EQ(dataset.kind, DatasetKind::kJsonLines);
  EXPECT_EQ(dataset.documents, 2);
  EXPECT_EQ(dataset.size_bytes, 41);
}

TEST_F(InspectDatasetTest, AcceptsTheExamples) {
  const std::string examples = std::string(PTQ_SOURCE_DIR) + "/examples/";
  const double start = CpuSeconds();
  PTQ_ASSERT_OK_AND_ASSIGN(const auto calibration,
                           InspectDataset(examples + "calibration.jsonl", "calibration.jsonl"));
  EXPECT_GT(calibration.documents, 1);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto evaluation,
                           InspectDataset(examples + "evaluation.txt", "evaluation.txt"));
  EXPECT_EQ(evaluation.kind, DatasetKind::kText);
  EXPECT_EQ(evaluation.documents, 1);
  EXPECT_LT(CpuSeconds() - start, 1.0);
}

TEST_F(InspectDatasetTest, NamesTheLineThatIsWrong) {
  ExpectRefused("c.jsonl", "{\"text\":\"a\"}\n{\"text\":\"\xff\"}\n", "line 2: not valid UTF-8");
  ExpectRefused("c.jsonl", "{\"text\":\"a\"}\n\n{\"text\"\n", "line 3: ");
  ExpectRefused("c.jsonl", "{\"text\":\"a\"}\n[]\n", "line 2: ");
  ExpectRefused("c.jsonl", "{\"body\":\"a\"}\n", "line 1: no string field \"text\"");
  ExpectRefused("c.jsonl", "{\"text\":7}\n", "line 1: no string field \"text\"");
  ExpectRefused("c.txt", "one\ntwo\n\xC3(\n", "line 3: not valid UTF-8");
}

TEST_F(InspectDatasetTest, RefusesWhatHasNoText) {
  ExpectRefused("c.jsonl", "", "the file is empty");
  ExpectRefused("c.jsonl", "\n\n", "no text");
  ExpectRefused("c.jsonl", "{\"text\":\"\"}\n{\"text\":\" \"}\n", "no text");
  ExpectRefused("c.txt", "", "the file is empty");
  ExpectRefused("c.txt", " \r\n\t", "no text");
  ExpectRefused("c.csv", "text\n", ".jsonl, .txt or .safetensors");
  EXPECT_THAT(InspectDataset(Path("none"), "none.txt"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
}

TEST_F(InspectDatasetTest, CharactersMayStraddlePieces) {
  for (size_t lead = 0; lead < 4; ++lead) {
    std::string text(lead, 'a');
    while (text.size() < (2 << 20) + 10) text += "\xF0\x9F\x98\x80";
    EXPECT_THAT(Inspect("c.txt", text), IsOk()) << lead;
    text.pop_back();
    ExpectRefused("c.txt", text, "line 1: not valid UTF-8");
  }
  ExpectRefused("c.txt", std::string((1 << 20) + 5, '\n') + "\xff", "line 1048582: not valid");
}

TEST_F(InspectDatasetTest, ReadsTheShapeOfTokens) {
  for (const DType dtype : {DType::kI64, DType::kI32, DType::kU16}) {
    PTQ_ASSERT_OK_AND_ASSIGN(
        const auto dataset,
        Inspect("c.safetensors", SafetensorsFile({{"input_ids", dtype, {3, 5}}})));
    EXPECT_EQ(dataset.kind, DatasetKind::kTokens);
    EXPECT_EQ(dataset.documents, 3);
    EXPECT_EQ(dataset.token_length, 5);
  }
  ExpectRefused("c.safetensors", SafetensorsFile({{"ids", DType::kI64, {3, 5}}}), "\"input_ids\"");
  ExpectRefused("c.safetensors", SafetensorsFile({{"input_ids", DType::kF32, {3, 5}}}),
                "dtype F32");
  ExpectRefused("c.safetensors", SafetensorsFile({{"input_ids", DType::kI64, {15}}}), "shape [15]");
  ExpectRefused("c.safetensors", SafetensorsFile({{"input_ids", DType::kI64, {0, 5}}}),
                "shape [0, 5]");
  ExpectRefused("c.safetensors", "PK\x03\x04 a pickle", "ZIP");
}

}  // namespace
}  // namespace ptq
