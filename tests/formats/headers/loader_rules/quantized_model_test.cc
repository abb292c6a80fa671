// Quantized folders and .gguf files as the inputs of conversions.
#include "formats/headers/loader_rules/quantized_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/formats/headers/loader_rules/quantized_models.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

class QuantizedModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/quantized_model_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  absl::StatusOr<QuantizedModel> Inspect(const testing::QuantizedModel& model) {
    testing::WriteQuantizedModel(folder_, model);
    EXPECT_TRUE(SaysQuantized(folder_));
    return InspectQuantizedModel(folder_);
  }

  std::string folder_;
};

TEST_F(QuantizedModelTest, EveryFormatSaysItsSchemes) {
  const std::pair<const char*, testing::QuantizedModel> models[] = {
      {"gptq", testing::GptqModel(3, 64)},
      {"awq", testing::AwqModel()},
      {"auto-round", testing::AutoRoundModel()},
      {"affine", testing::TorchaoModel()},
      {"compressed-tensors", testing::CompressedTensorsModel(8, -1, false)}};
  for (const auto& [format, written] : models) {
    SCOPED_TRACE(format);
    const auto model = Inspect(written);
    ASSERT_THAT(model, IsOk());
    EXPECT_EQ(model->format, format);
    EXPECT_EQ(model->architecture, "LlamaForCausalLM");
    EXPECT_EQ(model->modules.size(), static_cast<size_t>(7 * model->block_count));
  }
  const auto model = Inspect(testing::GptqModel(3, 64));
  ASSERT_THAT(model, IsOk());
  EXPECT_EQ(model->modules[0].module, "model.layers.0.mlp.down_proj");
  EXPECT_EQ(model->modules[0].scheme.bits, 3);
  EXPECT_EQ(model->modules[0].scheme.group_size, 64);
  EXPECT_EQ(model->modules[0].in_features, 512);
}

TEST_F(QuantizedModelTest, AFormatThatCantHoldItIsNamedBeforeAnythingIsRead) {
  const auto model = Inspect(testing::GptqModel(3, 64));
  ASSERT_THAT(model, IsOk());
  EXPECT_THAT(CheckConversion(*model, {"compressed-tensors", "affine"}), IsOk());
  EXPECT_THAT(CheckConversion(*model, {"affine", "gguf"}),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("gguf can't hold model.layers.0.mlp.down_proj")));
}

TEST_F(QuantizedModelTest, PlainAndUnknownModelsAreRefused) {
  testing::WriteQuantizedModel(folder_, testing::PlainModel());
  EXPECT_FALSE(SaysQuantized(folder_));
  EXPECT_THAT(InspectQuantizedModel(folder_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no quantization_config")));
  testing::QuantizedModel other = testing::GptqModel();
  other.quantization()["quant_method"] = "bitsandbytes";
  EXPECT_THAT(Inspect(other), StatusIs(absl::StatusCode::kInvalidArgument,
                                       HasSubstr("\"bitsandbytes\" can't be read")));
  std::filesystem::remove_all(folder_);
  EXPECT_FALSE(SaysQuantized(folder_));
  EXPECT_THAT(InspectQuantizedModel(folder_), StatusIs(absl::StatusCode::kNotFound, HasSubstr("")));
}

std::string Text(const std::string& text) { return testing::LengthPrefix(text.size()) + text; }

// One key of text and one of a 32-bit number.
std::string GgufBytes(const std::string& block_count_key, uint32_t blocks) {
  std::string number(4, '\0');
  std::memcpy(number.data(), &blocks, 4);
  return "GGUF" + std::string("\3\0\0\0", 4) + std::string(8, '\0') +
         std::string("\2\0\0\0\0\0\0\0", 8) + Text("general.architecture") +
         std::string("\10\0\0\0", 4) + Text("llama") + Text(block_count_key) +
         std::string("\4\0\0\0", 4) + number;
}

TEST_F(QuantizedModelTest, AGgufFileSaysItsArchitecture) {
  const std::string path = folder_ + "/model.gguf";
  std::ofstream(path, std::ios::binary) << GgufBytes("llama.block_count", 3);
  for (const std::string& named : {path, folder_}) {
    EXPECT_TRUE(SaysQuantized(named));
    const auto model = InspectQuantizedModel(named);
    ASSERT_THAT(model, IsOk());
    EXPECT_EQ(model->format, "gguf");
    EXPECT_EQ(model->architecture, "llama");
    EXPECT_EQ(model->block_count, 3);
  }
  std::ofstream(path, std::ios::binary) << GgufBytes("qwen2.block_count", 3);
  EXPECT_THAT(InspectQuantizedModel(path),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("llama.block_count")));
}

}  // namespace
}  // namespace ptq
