// The formats of safetensors files: what they write reads back to the same records, what they can't
// hold is refused by name, and what is damaged is noticed.
#include "formats/safetensors_format.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <functional>

#include "common/sha256.h"
#include "formats/checkpoint_format.h"
#include "formats/headers/format_rules.h"
#include "formats/headers/safetensors_header.h"
#include "formats/packed_check.h"
#include "tests/formats/memory_checkpoint.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::MemoryCheckpoint;
using testing::StatusIs;

constexpr char kQProj[] = "model.layers.0.self_attn.q_proj";
constexpr auto kPrecondition = absl::StatusCode::kFailedPrecondition;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kDataLoss = absl::StatusCode::kDataLoss;

class SafetensorsFormatTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::replace(name.begin(), name.end(), '/', '_');
    root_ = ::testing::TempDir() + "/safetensors_format_" + name;
    ASSERT_THAT(RemoveTree(root_), IsOk());
    ASSERT_THAT(MakeDirectories(Out("")), IsOk());
    // Four heads of keys: GPTQ wants 32 outputs.
    ASSERT_THAT(testing::WriteTinyCheckpoint(root_ + "/source", /*tied=*/false, at::kBFloat16, 4),
                IsOk());
    PTQ_ASSERT_OK_AND_ASSIGN(source_, InspectCheckpoint(root_ + "/source"));
    PTQ_ASSERT_OK_AND_ASSIGN(reader_, SafetensorsCheckpointReader::Open(source_.index));
  }
  void TearDown() override { ASSERT_THAT(RemoveTree(root_), IsOk()); }

  std::string Out(const std::string& name) const { return root_ + "/out/" + name; }
  ExportPlan Plan(const QuantizationScheme& scheme,
                  const std::vector<std::string>& skipped = {}) const {
    return testing::PlanFor(source_, scheme, skipped);
  }
  absl::Status Write(const std::string& format, const QuantizedCheckpoint& checkpoint) const {
    return FindCheckpointFormat(format)->Write(checkpoint, root_ + "/out", cancel_).status();
  }
  absl::StatusOr<std::unique_ptr<QuantizedCheckpoint>> Open() const {
    PTQ_ASSIGN_OR_RETURN(const CheckpointFormat* format, DetectCheckpointFormat(root_ + "/out"));
    return format->Open(root_ + "/out");
  }
  absl::StatusOr<std::vector<QuantizedModule>> OpenAndRead(int64_t block) const {
    PTQ_ASSIGN_OR_RETURN(const auto opened, Open());
    return opened->ReadBlock(block);
  }
  Json Config(const std::string& name = "config.json") const {
    const auto text = ReadFile(Out(name));
    return text.ok() ? *ParseJson(*text) : Json();
  }
  void ChangeConfig(const std::function<void(Json&)>& change) const {
    Json config = Config();
    change(config["quantization_config"]);
    ASSERT_THAT(WriteFileAtomically(Out("config.json"), DumpJsonPretty(config)), IsOk());
  }
  // Rewrites the shard of block 0 and the index with other tensors.
  void ChangeTensors(const std::function<void(std::vector<NamedTensor>&)>& change) const {
    const std::string shard = "model-00002-of-00004.safetensors";
    PTQ_ASSERT_OK_AND_ASSIGN(const auto index, CheckpointIndex::Open(root_ + "/out"));
    PTQ_ASSERT_OK_AND_ASSIGN(const auto reader, SafetensorsCheckpointReader::Open(index));
    PTQ_ASSERT_OK_AND_ASSIGN(const auto file, ReadableFile::Open(Out(shard)));
    PTQ_ASSERT_OK_AND_ASSIGN(const auto header, ReadSafetensorsHeader(file));
    std::vector<NamedTensor> tensors;
    for (const auto& [name, tensor] : index.tensors()) {
      if (tensor.file != shard) continue;
      PTQ_ASSERT_OK_AND_ASSIGN(at::Tensor data, reader->Read(name));
      tensors.push_back({name, data});
    }
    Json json = Config("model.safetensors.index.json");
    for (const NamedTensor& tensor : tensors) json["weight_map"].erase(tensor.name);
    change(tensors);
    for (const NamedTensor& tensor : tensors) json["weight_map"][tensor.name] = shard;
    ASSERT_THAT(WriteSafetensors(Out(shard), tensors, header.metadata), IsOk());
    ASSERT_THAT(WriteFileAtomically(Out("model.safetensors.index.json"), DumpJsonPretty(json)),
                IsOk());
  }

  std::string root_;
  CancellationToken cancel_;
  CheckpointInspection source_;
  std::unique_ptr<SafetensorsCheckpointReader> reader_;
};

NamedTensor& TensorOf(std::vector<NamedTensor>& tensors, const std::string& name) {
  return *std::find_if(tensors.begin(), tensors.end(),
                       [&](const NamedTensor& tensor) { return tensor.name == name; });
}

struct Case {
  const char* name;
  const char* format;
  QuantizationScheme scheme;
};

class RoundTripTest : public SafetensorsFormatTest, public ::testing::WithParamInterface<Case> {};

TEST_P(RoundTripTest, RecordsComeBack) {
  const QuantizationScheme scheme = GetParam().scheme;
  const std::string skipped = "model.layers.1.mlp.up_proj";
  MemoryCheckpoint checkpoint(Plan(scheme, {skipped}), *reader_);
  // Zero point 0 is refused by gptq alone, whose test has its own.
  for (size_t block = 0; block < 2; ++block) {
    for (QuantizedModule& module : checkpoint.block(block)) {
      module.weight.zero_point.clamp_min_(scheme.quant_min() + 1);
    }
  }
  ASSERT_THAT(Write(GetParam().format, checkpoint), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(const CheckpointFormat* format, DetectCheckpointFormat(root_ + "/out"));
  EXPECT_EQ(format->name(), GetParam().format);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto opened, Open());
  const bool affine = format->name() == "affine";
  const ExportPlan& plan = opened->plan();
  EXPECT_EQ(plan.skipped, std::vector<std::string>{skipped});
  ASSERT_EQ(plan.modules.size(), checkpoint.plan().modules.size());
  // Only affine has a scale for a whole tensor; the others repeat it for each row.
  QuantizationScheme expected = scheme;
  if (!affine && scheme.group_size == 0) expected.group_size = -1;
  for (size_t i = 0; i < plan.modules.size(); ++i) {
    EXPECT_EQ(plan.modules[i].module, checkpoint.plan().modules[i].module);
    EXPECT_EQ(plan.modules[i].scheme.bits, expected.bits);
    EXPECT_EQ(plan.modules[i].scheme.group_size, expected.group_size);
    EXPECT_EQ(plan.modules[i].scheme.symmetric, expected.symmetric);
  }
  for (int64_t block = 0; block < 2; ++block) {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto written, checkpoint.ReadBlock(block));
    PTQ_ASSERT_OK_AND_ASSIGN(const auto read, opened->ReadBlock(block));
    ASSERT_EQ(read.size(), written.size());
    for (size_t i = 0; i < read.size(); ++i) {
      SCOPED_TRACE(read[i].module);
      AffineQuantizedTensor record = written[i].weight;
      record.original_dtype = read[i].weight.original_dtype;
      if (expected.group_size != scheme.group_size) {
        const int64_t rows = record.int_data.size(0);
        record.scale = record.scale.expand({rows, 1});
        record.zero_point = record.zero_point.expand({rows, 1});
        record.block_size = {1, record.int_data.size(1)};
      }
      testing::ExpectSameRecord(read[i].weight, record);
    }
  }
  // What is not quantized is copied.
  for (const char* name : {"lm_head.weight", "model.layers.1.mlp.up_proj.weight"}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor copied, opened->plain().Read(name));
    PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor original, reader_->Read(name));
    EXPECT_TRUE(copied.equal(original)) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, RoundTripTest,
    ::testing::Values(
        Case{"affine_w4", "affine", {4, 32, true}},
        Case{"affine_w3_asym", "affine", {3, 16, false}},
        Case{"affine_tensor", "affine", {5, 0, false}},
        Case{"affine_int8", "affine", {8, -1, true}},
        Case{"affine_torchao", "affine", {4, 32, true, ScaleRule::kTorchao}},
        Case{"ct_w4", "compressed-tensors", {4, 32, true}},
        Case{"ct_w4_asym", "compressed-tensors", {4, 32, false}},
        Case{"ct_w8_channel", "compressed-tensors", {8, -1, true}},
        Case{"ct_w8_channel_asym", "compressed-tensors", {8, -1, false}},
        Case{"ct_w3_asym", "compressed-tensors", {3, 16, false}},
        Case{"ct_w5", "compressed-tensors", {5, 32, true}},
        Case{"ct_w7_tensor", "compressed-tensors", {7, 0, false}},
        Case{"ct_bf16_scales", "compressed-tensors", {4, 32, true, ScaleRule::kTorchao}},
        Case{"gptq_w2", "gptq", {2, 16, true}}, Case{"gptq_w3", "gptq", {3, 32, true}},
        Case{"gptq_w4", "gptq", {4, 32, true}}, Case{"gptq_w4_asym", "gptq", {4, 32, false}},
        Case{"gptq_w8_channel", "gptq", {8, -1, true}},
        Case{"gptq_w4_tensor", "gptq", {4, 0, true}}, Case{"awq", "awq", {4, 32, false}},
        Case{"awq_symmetric", "awq", {4, 32, true}}, Case{"awq_channel", "awq", {4, -1, false}},
        Case{"auto_round_w4", "auto-round", {4, 32, true}},
        Case{"auto_round_w6", "auto-round", {6, 32, true}},
        Case{"auto_round_w4_asym", "auto-round", {4, 32, false}},
        Case{"auto_round_w2_asym", "auto-round", {2, 32, false}}),
    [](const ::testing::TestParamInfo<Case>& test) { return test.param.name; });

// Another width, other groups, and a layer left alone.
TEST_F(SafetensorsFormatTest, MixedSchemesComeBack) {
  for (const char* format : {"affine", "compressed-tensors", "gptq", "auto-round"}) {
    SCOPED_TRACE(format);
    ASSERT_THAT(RemoveTree(root_ + "/out"), IsOk());
    ASSERT_THAT(MakeDirectories(root_ + "/out"), IsOk());
    ExportPlan plan = Plan({4, 32, true}, {"model.layers.1.mlp.gate_proj"});
    plan.modules[2].scheme = {8, -1, true};
    plan.modules[5].scheme = {2, 16, true};
    MemoryCheckpoint checkpoint(plan, *reader_);
    ASSERT_THAT(Write(format, checkpoint), IsOk());
    PTQ_ASSERT_OK_AND_ASSIGN(const auto opened, Open());
    for (size_t i = 0; i < plan.modules.size(); ++i) {
      EXPECT_EQ(opened->plan().modules[i].scheme, plan.modules[i].scheme) << i;
    }
    EXPECT_EQ(opened->plan().default_scheme, plan.default_scheme);
    EXPECT_EQ(opened->plan().skipped, plan.skipped);
    for (int64_t block = 0; block < 2; ++block) {
      PTQ_ASSERT_OK_AND_ASSIGN(const auto read, opened->ReadBlock(block));
      PTQ_ASSERT_OK_AND_ASSIGN(const auto written, checkpoint.ReadBlock(block));
      for (size_t i = 0; i < read.size(); ++i) {
        EXPECT_TRUE(read[i].weight.int_data.equal(written[i].weight.int_data)) << read[i].module;
        EXPECT_TRUE(read[i].weight.scale.equal(written[i].weight.scale)) << read[i].module;
      }
    }
  }
}

TEST_F(SafetensorsFormatTest, GoldenGptqFile) {
  ExportPlan plan = Plan({4, 32, false});
  MemoryCheckpoint checkpoint(plan, *reader_);
  AffineQuantizedTensor& golden = checkpoint.block(0)[0].weight;
  for (int64_t n = 0; n < 32; ++n) {
    for (int64_t k = 0; k < 64; ++k) {
      golden.int_data[n][k] = (7 * n + 3 * k + (n * k) % 5) % 16 - 8;
    }
    for (int64_t g = 0; g < 2; ++g) {
      golden.zero_point[n][g] = 1 + (n + 3 * g) % 15 - 8;
      golden.scale[n][g] = static_cast<double>(n + 1 + 2 * g) / 64;
    }
  }
  for (size_t block = 0; block < 2; ++block) {
    for (QuantizedModule& module : checkpoint.block(block)) {
      module.weight.zero_point.clamp_min_(-7);
    }
  }
  ASSERT_THAT(Write("gptq", checkpoint), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(const auto index, CheckpointIndex::Open(root_ + "/out"));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto reader, SafetensorsCheckpointReader::Open(index));
  const auto digest = [&](const char* name) {
    const at::Tensor tensor = *reader->Read(std::string(kQProj) + "." + name);
    return Sha256Hex({static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()});
  };
  EXPECT_EQ(digest("qweight"), "5376485908923a4af2b74f0a9b4b4e70fc86bac2620b7e9dc04f9b0d124833ea");
  EXPECT_EQ(digest("qzeros"), "511d934055992179914b1ee5883bed25230a71ab1c862a372b7313a5de46af78");
  EXPECT_EQ(digest("scales"), "d19c421a087ddd800e31fe568de05ef01ec2c13f5b44048f52589c29169c87e3");
  EXPECT_EQ(digest("g_idx"), "fe5ef84623360b7ba807957ef1270a7118f24c2255a00f287fc2addb6411a363");
}

TEST_F(SafetensorsFormatTest, ConfigsSayWhatLoadersAsk) {
  const MemoryCheckpoint checkpoint(Plan({4, 32, true}, {"model.layers.1.mlp.up_proj"}), *reader_);
  ASSERT_THAT(Write("gptq", checkpoint), IsOk());
  Json config = Config()["quantization_config"];
  EXPECT_EQ(Config("quantize_config.json"), config);
  EXPECT_EQ(Config()["dtype"], "float16");
  EXPECT_EQ(config["quant_method"], "gptq");
  EXPECT_EQ(config["checkpoint_format"], "gptq");
  EXPECT_EQ(config["bits"], 4);
  EXPECT_EQ(config["group_size"], 32);
  EXPECT_EQ(config["sym"], true);
  EXPECT_EQ(config["desc_act"], false);
  EXPECT_EQ(DumpJson(config["dynamic"]), R"({"-:^model\\.layers\\.1\\.mlp\\.up_proj$":{},)"
                                         R"("-:^model\\.layers\\.1\\.mlp\\.gate_up_proj$":{}})");
  // 7 layers in each of two blocks, less the one that is skipped.
  const Json& names = config["modules_in_block_to_quantize"][0];
  EXPECT_EQ(names.size(), 13u);
  EXPECT_EQ(names[0], "model.layers.0.self_attn.q_proj");
  EXPECT_EQ(std::find(names.begin(), names.end(), "model.layers.1.mlp.up_proj"), names.end());

  ASSERT_THAT(Write("compressed-tensors", checkpoint), IsOk());
  config = Config()["quantization_config"];
  EXPECT_EQ(config["format"], "pack-quantized");
  EXPECT_EQ(config["ignore"], Json({"lm_head", "model.layers.1.mlp.up_proj"}));
  EXPECT_EQ(config["config_groups"].size(), 1u);
  EXPECT_EQ(config["config_groups"]["group_0"]["targets"], Json::array({"Linear"}));
  EXPECT_EQ(config["config_groups"]["group_0"]["weights"]["strategy"], "group");
  EXPECT_EQ(Config()["dtype"], "float16");  // bfloat16 would round the scales

  ASSERT_THAT(Write("awq", checkpoint), IsOk());
  config = Config()["quantization_config"];
  EXPECT_EQ(config["version"], "gemm");
  EXPECT_EQ(config["zero_point"], true);
  EXPECT_EQ(config["modules_to_not_convert"], Json({"lm_head", "model.layers.1.mlp.up_proj"}));

  ASSERT_THAT(Write("auto-round", checkpoint), IsOk());
  config = Config()["quantization_config"];
  EXPECT_EQ(config["packing_format"], "auto_round:auto_gptq");
  EXPECT_EQ(config["block_name_to_quantize"], "model.layers");
  EXPECT_EQ(config["extra_config"]["model.layers.1.mlp.up_proj"]["bits"], 16);
  EXPECT_FALSE(PathExists(Out("weights.json")));

  // The model's own dtype stays where it holds the scales.
  const MemoryCheckpoint bf16(Plan({4, 32, true, ScaleRule::kTorchao}), *reader_);
  ASSERT_THAT(Write("compressed-tensors", bf16), IsOk());
  EXPECT_EQ(Config()["dtype"], "bfloat16");
}

TEST_F(SafetensorsFormatTest, HeadAndEmbeddingComeBack) {
  const QuantizationScheme eight = {8, 32, true};
  const PlannedModule embedding = {.module = "model.embed_tokens",
                                   .out_features = 50,
                                   .in_features = 64,
                                   .scheme = eight,
                                   .place = ModulePlace::kEmbedding};
  const PlannedModule head = {.module = "lm_head",
                              .out_features = 50,
                              .in_features = 64,
                              .scheme = eight,
                              .place = ModulePlace::kHead};
  for (const char* format : {"affine", "compressed-tensors"}) {
    SCOPED_TRACE(format);
    ASSERT_THAT(RemoveTree(root_ + "/out"), IsOk());
    ASSERT_THAT(MakeDirectories(root_ + "/out"), IsOk());
    ExportPlan plan = Plan({4, 32, true});
    const bool affine = std::string(format) == "affine";
    if (affine) plan.modules.insert(plan.modules.begin(), embedding);
    plan.modules.push_back(head);
    const MemoryCheckpoint checkpoint(plan, *reader_);
    ASSERT_THAT(Write(format, checkpoint), IsOk());
    PTQ_ASSERT_OK_AND_ASSIGN(const auto opened, Open());
    ASSERT_EQ(opened->plan().modules.size(), plan.modules.size());
    EXPECT_EQ(opened->plan().modules.back().place, ModulePlace::kHead);
    EXPECT_EQ(opened->plan().modules.back().scheme, eight);
    EXPECT_EQ(opened->plan().skipped, plan.skipped);
    const int64_t first = affine ? kEmbeddingBlock : 0;
    for (int64_t block = first; block <= 2; ++block) {
      PTQ_ASSERT_OK_AND_ASSIGN(const auto read, opened->ReadBlock(block));
      PTQ_ASSERT_OK_AND_ASSIGN(const auto written, checkpoint.ReadBlock(block));
      ASSERT_EQ(read.size(), written.size());
      for (size_t i = 0; i < read.size(); ++i) {
        EXPECT_TRUE(read[i].weight.int_data.equal(written[i].weight.int_data)) << read[i].module;
        EXPECT_TRUE(read[i].weight.scale.equal(written[i].weight.scale)) << read[i].module;
      }
    }
    if (affine) continue;
    EXPECT_EQ(Config()["quantization_config"]["ignore"], Json::array());
    // vLLM looks for a head by its name.
    EXPECT_EQ(Config()["quantization_config"]["config_groups"]["group_1"]["targets"],
              Json({"lm_head"}));
  }
  ExportPlan plan = Plan({4, 32, true});
  plan.modules.insert(plan.modules.begin(), embedding);
  EXPECT_THAT(Write("compressed-tensors", MemoryCheckpoint(plan, *reader_)),
              StatusIs(kPrecondition, HasSubstr("no quantized embedding")));
}

TEST_F(SafetensorsFormatTest, DequantizedIsAPlainCheckpoint) {
  const MemoryCheckpoint checkpoint(Plan({4, 32, true}), *reader_);
  ASSERT_THAT(Write("dequantized", checkpoint), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(const auto original, ReadFile(root_ + "/source/config.json"));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto copied, ReadFile(Out("config.json")));
  EXPECT_EQ(original, copied);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto written, InspectCheckpoint(root_ + "/out"));
  EXPECT_EQ(written.index.tensors().size(), source_.index.tensors().size());
  PTQ_ASSERT_OK_AND_ASSIGN(const auto out, SafetensorsCheckpointReader::Open(written.index));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto records, checkpoint.ReadBlock(0));
  PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor weight, out->Read(records[3].module + ".weight"));
  EXPECT_EQ(weight.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(weight.equal(Dequantize(records[3].weight, at::kBFloat16)));
  // Nothing says any more that it was quantized.
  EXPECT_THAT(Open(), StatusIs(kInvalid, HasSubstr("no quantization_config")));
  EXPECT_THAT(FindCheckpointFormat("dequantized")->Open(root_ + "/out"),
              StatusIs(kInvalid, HasSubstr("no quantization_config")));
  EXPECT_EQ(FindCheckpointFormat("onnx"), nullptr);
}

TEST_F(SafetensorsFormatTest, FormatsRefuseSchemesByName) {
  const auto check = [&](const char* format, const QuantizationScheme& scheme) {
    return FindCheckpointFormat(format)->CheckPlan(Plan(scheme));
  };
  const auto refused = [](const std::string& why, const std::string& instead) {
    return StatusIs(kPrecondition, AllOf(HasSubstr(kQProj), HasSubstr(why), HasSubstr(instead)));
  };
  EXPECT_THAT(check("gptq", {5, 32, true}), refused("5 bits", "compressed-tensors"));
  EXPECT_THAT(check("awq", {8, 32, false}), refused("8 bits", "compressed-tensors"));
  EXPECT_THAT(check("gptq", {8, -1, true}), IsOk());
  EXPECT_THAT(check("auto-round", {7, 32, true}), IsOk());
  EXPECT_THAT(check("affine", {5, 0, false}), IsOk());
  EXPECT_THAT(check("compressed-tensors", {3, 16, false}), IsOk());
  for (const char* format : {"affine", "compressed-tensors", "gptq", "awq", "auto-round"}) {
    EXPECT_THAT(check(format, KQuantScheme(KQuant::kQ4_K)), refused("Q4_K", "gguf"));
  }
  EXPECT_THAT(check("dequantized", KQuantScheme(KQuant::kQ4_K)), IsOk());
  ExportPlan plan = Plan({4, 32, false});
  plan.modules[1].scheme.group_size = 16;
  EXPECT_THAT(FindCheckpointFormat("awq")->CheckPlan(plan),
              StatusIs(kPrecondition, AllOf(HasSubstr(plan.modules[1].module),
                                            HasSubstr("group size"), HasSubstr("gptq"))));
  // Odd shapes.
  PlannedModule odd = {"m", 24, 64, {4, 32, true}};
  EXPECT_THAT(CheckFormatHolds("gptq", {odd}),
              StatusIs(kPrecondition, HasSubstr("24 outputs are no multiple of 32")));
  EXPECT_THAT(CheckFormatHolds("awq", {odd}), IsOk());
  odd = {"m", 64, 48, {4, 16, true}};
  EXPECT_THAT(CheckFormatHolds("auto-round", {odd}),
              StatusIs(kPrecondition, HasSubstr("48 inputs are no multiple of 32")));
  EXPECT_THAT(CheckFormatHolds("compressed-tensors", {odd}), IsOk());
}

TEST_F(SafetensorsFormatTest, FormatsRefuseValuesByName) {
  const auto refused = [](const std::string& why, const std::string& instead) {
    return StatusIs(kPrecondition, AllOf(HasSubstr(kQProj), HasSubstr(why), HasSubstr(instead)));
  };
  MemoryCheckpoint zero(Plan({4, 32, false}), *reader_);
  for (QuantizedModule& module : zero.block(0)) module.weight.zero_point.fill_(3);
  zero.block(0)[0].weight.zero_point[7][1] = -8;
  EXPECT_THAT(Write("gptq", zero), refused("zero point at [7, 1] is 0", "compressed-tensors"));
  EXPECT_FALSE(PathExists(Out("config.json")));
  EXPECT_FALSE(PathExists(Out("model-00002-of-00004.safetensors")));
  EXPECT_THAT(Write("awq", zero), IsOk());

  zero.block(0)[0].weight.zero_point[7][1] = 100;  // a byte, as torchao's file has it
  for (const char* format : {"awq", "compressed-tensors", "auto-round"}) {
    EXPECT_THAT(Write(format, zero), refused("zero point at [7, 1] is 108", "use affine"));
  }

  MemoryCheckpoint bf16(Plan({4, 32, true, ScaleRule::kTorchao}), *reader_);
  for (size_t block = 0; block < 2; ++block) {
    for (QuantizedModule& module : bf16.block(block)) module.weight.scale.fill_(0.5);
  }
  EXPECT_THAT(Write("gptq", bf16), IsOk());
  bf16.block(0)[0].weight.scale[3][1] = 1e-6;
  for (const char* format : {"gptq", "awq", "auto-round"}) {
    EXPECT_THAT(Write(format, bf16), refused("at [3, 1] is no float16", "compressed-tensors"));
  }
  EXPECT_THAT(Write("compressed-tensors", bf16), IsOk());
}

TEST_F(SafetensorsFormatTest, WritingCanBeStopped) {
  const MemoryCheckpoint checkpoint(Plan({4, 32, true}), *reader_);
  cancel_.Cancel();
  EXPECT_THAT(Write("gptq", checkpoint), StatusIs(absl::StatusCode::kCancelled, HasSubstr("stop")));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto names, ListDirectory(root_ + "/out"));
  EXPECT_TRUE(names.empty());
}

// The decoder behind every writer sees each byte of each tensor.
TEST_F(SafetensorsFormatTest, ChecksNoticeEveryTensor) {
  for (const char* format : {"gptq", "awq", "compressed-tensors"}) {
    for (const int bits : {3, 4}) {
      if (bits == 3 && std::string(format) == "awq") continue;
      SCOPED_TRACE(::testing::Message() << format << " " << bits);
      MemoryCheckpoint checkpoint(Plan({bits, 32, false}), *reader_);
      for (size_t block = 0; block < 2; ++block) {
        for (QuantizedModule& module : checkpoint.block(block)) {
          module.weight.zero_point.clamp_min_(1 - (1 << (bits - 1)));
        }
      }
      ASSERT_THAT(Write(format, checkpoint), IsOk());
      const std::string path = Out("model-00002-of-00004.safetensors");
      PTQ_ASSERT_OK_AND_ASSIGN(const std::string good, ReadFile(path));
      const PlannedModule module = checkpoint.plan().modules[0];
      const RecordView view = ViewOf(module, checkpoint.block(0)[0].weight);
      const auto check = [&]() -> absl::Status {
        PTQ_ASSIGN_OR_RETURN(RecordCheck file, RecordCheck::Open(path));
        if (std::string(format) == "gptq") return CheckGptq(view, 1, true, file);
        if (std::string(format) == "awq") return CheckAwq(view, file);
        return CheckCompressedTensors(view, false, file);
      };
      EXPECT_THAT(check(), IsOk());
      PTQ_ASSERT_OK_AND_ASSIGN(const auto file, ReadableFile::Open(path));
      PTQ_ASSERT_OK_AND_ASSIGN(const auto header, ReadSafetensorsHeader(file));
      int tensors = 0;
      for (const TensorInfo& info : header.tensors) {
        if (info.name.rfind(std::string(kQProj) + ".", 0) != 0) continue;
        ++tensors;
        for (const int64_t byte : {int64_t{0}, info.bytes() / 2, info.bytes() - 1}) {
          std::string damaged = good;
          damaged[static_cast<size_t>(header.data_offset + info.begin + byte)] ^= 0x20;
          ASSERT_THAT(WriteFileAtomically(path, damaged), IsOk());
          EXPECT_THAT(check(), StatusIs(kDataLoss, HasSubstr(info.name))) << byte;
        }
      }
      EXPECT_GE(tensors, 3);
    }
  }
}

TEST_F(SafetensorsFormatTest, DamagedFoldersAreRefusedByName) {
  const MemoryCheckpoint checkpoint(Plan({4, 32, true}), *reader_);
  const auto with = [&](const char* format, const std::function<void()>& damage) {
    EXPECT_THAT(Write(format, checkpoint), IsOk());
    EXPECT_THAT(OpenAndRead(0), IsOk());
    damage();
    return OpenAndRead(0).status();
  };
  const std::string name = kQProj;
  const auto tensors = [this](auto change) { return [this, change] { ChangeTensors(change); }; };
  const auto config = [this](auto change) { return [this, change] { ChangeConfig(change); }; };
  using Tensors = std::vector<NamedTensor>;

  EXPECT_THAT(with("gptq", tensors([&](Tensors& t) {
                     TensorOf(t, name + ".g_idx").tensor = at::arange(64, at::kInt).remainder(2);
                   })),
              StatusIs(kPrecondition, AllOf(HasSubstr("g_idx"), HasSubstr("act-order"))));
  EXPECT_THAT(
      with("gptq", tensors([&](Tensors& t) { TensorOf(t, name + ".qzeros").tensor.fill_(-1); })),
      StatusIs(kPrecondition, AllOf(HasSubstr("qzeros"), HasSubstr("wrapped"))));
  EXPECT_THAT(
      with("gptq", tensors([&](Tensors& t) { TensorOf(t, name + ".scales").tensor.fill_(0); })),
      StatusIs(kPrecondition, AllOf(HasSubstr(name), HasSubstr("scale holds 0"))));
  EXPECT_THAT(with("gptq", tensors([&](Tensors& t) {
                     NamedTensor& weight = TensorOf(t, name + ".qweight");
                     weight.tensor = weight.tensor.slice(0, 0, 4).contiguous();
                   })),
              StatusIs(kDataLoss, HasSubstr(name + ".qweight")));
  EXPECT_THAT(with("gptq", tensors([&](Tensors& t) {
                     t.erase(std::find_if(t.begin(), t.end(), [&](const NamedTensor& tensor) {
                       return tensor.name == name + ".qzeros";
                     }));
                   })),
              StatusIs(kInvalid, HasSubstr(name + ".qzeros is missing")));
  EXPECT_THAT(with("compressed-tensors", tensors([&](Tensors& t) {
                     t.push_back({name + ".weight_g_idx", at::zeros({64}, at::kInt)});
                   })),
              StatusIs(kInvalid, HasSubstr("weight_g_idx")));
  EXPECT_THAT(with("compressed-tensors", tensors([&](Tensors& t) {
                     TensorOf(t, name + ".weight_shape").tensor.fill_(64);
                   })),
              StatusIs(kDataLoss, HasSubstr("weight_shape")));
  EXPECT_THAT(with("awq", tensors([&](Tensors& t) {
                     TensorOf(t, "model.layers.0.input_layernorm.weight").name = "x.weight";
                   })),
              StatusIs(kInvalid, HasSubstr("input_layernorm.weight is missing")));

  EXPECT_THAT(with("gptq", config([](Json& c) { c["bits"] = 8; })),
              StatusIs(kDataLoss, HasSubstr("qweight")));
  EXPECT_THAT(with("gptq", config([](Json& c) { c["group_size"] = 48; })),
              StatusIs(kPrecondition, HasSubstr("groups of 48")));
  EXPECT_THAT(with("gptq", config([](Json& c) { c["checkpoint_format"] = "marlin"; })),
              StatusIs(kPrecondition, HasSubstr("marlin")));
  EXPECT_THAT(with("gptq", config([](Json& c) {
                     c["dynamic"] = {{"+:(?=x)", {{"bits", 8}}}};
                   })),
              StatusIs(kInvalid, HasSubstr("(?=x)")));
  EXPECT_THAT(with("gptq", config([](Json& c) { c.erase("bits"); })),
              StatusIs(kInvalid, HasSubstr("bits")));
  EXPECT_THAT(with("gptq", config([](Json& c) { c["quant_method"] = "hqq"; })),
              StatusIs(kInvalid, AllOf(HasSubstr("hqq"), HasSubstr("compressed-tensors"))));
  EXPECT_THAT(with("awq", config([](Json& c) { c["version"] = "gemv"; })),
              StatusIs(kPrecondition, HasSubstr("gemv")));
  EXPECT_THAT(with("auto-round", config([](Json& c) { c["packing_format"] = "auto_round:fp8"; })),
              StatusIs(kPrecondition, HasSubstr("auto_round:fp8")));
  EXPECT_THAT(with("auto-round", config([](Json& c) { c["act_bits"] = 8; })),
              StatusIs(kPrecondition, HasSubstr("act_bits")));
  EXPECT_THAT(with("compressed-tensors", config([](Json& c) {
                     c["config_groups"]["group_0"]["input_activations"] = {{"num_bits", 8}};
                   })),
              StatusIs(kPrecondition, HasSubstr("input_activations")));
  EXPECT_THAT(with("compressed-tensors", config([](Json& c) {
                     c["config_groups"]["group_0"]["weights"]["actorder"] = "group";
                   })),
              StatusIs(kPrecondition, HasSubstr("actorder")));
  EXPECT_THAT(
      with("compressed-tensors", config([&](Json& c) { c["ignore"].push_back("re:.*q_proj"); })),
      StatusIs(kInvalid, HasSubstr("not quantized")));
  EXPECT_THAT(with("affine", tensors([&](Tensors& t) {
                     TensorOf(t, name + "._weight_qdata").tensor.fill_(9);
                   })),
              StatusIs(kDataLoss, AllOf(HasSubstr(name), HasSubstr("int_data"))));
}

}  // namespace
}  // namespace ptq
