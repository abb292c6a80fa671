// The records of a job, as files of their own and as shards of the affine format: what is in them,
// bit for bit, and what is refused.
#include "formats/record_folder.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>

#include "common/sha256.h"
#include "formats/headers/safetensors_header.h"
#include "tests/formats/tiny_checkpoint.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IsOk;
using ::testing::Not;
using testing::StatusIs;

constexpr char kQProj[] = "model.layers.0.self_attn.q_proj";

class RecordFolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "/record_folder_" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_THAT(RemoveTree(root_), IsOk());
    ASSERT_THAT(MakeDirectories(root_ + "/out"), IsOk());
  }
  void WriteSource(bool tied, at::ScalarType dtype = at::kBFloat16) {
    ASSERT_THAT(testing::WriteTinyCheckpoint(root_ + "/source", tied, dtype), IsOk());
    PTQ_ASSERT_OK_AND_ASSIGN(source_, InspectCheckpoint(root_ + "/source"));
    PTQ_ASSERT_OK_AND_ASSIGN(reader_, SafetensorsCheckpointReader::Open(source_.index));
  }
  // Both blocks and the rest.
  absl::Status WriteAll(const RecordFolder& folder, const ExportPlan& plan) {
    at::manual_seed(5);
    for (int64_t block = 0; block < 2; ++block) {
      PTQ_RETURN_IF_ERROR(
          folder.WriteBlock(block, testing::RandomBlock(plan, block), *reader_, cancel_).status());
    }
    PTQ_RETURN_IF_ERROR(folder.WriteOuterShards(*reader_, cancel_).status());
    return folder.Finalize();
  }
  absl::StatusOr<std::unique_ptr<RecordFolder>> Shards(const ExportPlan& plan) const {
    return RecordFolder::Create(plan, root_ + "/out", RecordFolder::Kind::kAffineShards);
  }
  std::string Out(const std::string& name) const { return root_ + "/out/" + name; }

  std::string root_;
  CancellationToken cancel_;
  CheckpointInspection source_;
  std::unique_ptr<SafetensorsCheckpointReader> reader_;
};

struct Scheme {
  const char* name;
  QuantizationScheme scheme;
};

class RecordSchemeTest : public RecordFolderTest, public ::testing::WithParamInterface<Scheme> {};

TEST_P(RecordSchemeTest, RecordsComeBackFromBothKindsOfFile) {
  WriteSource(/*tied=*/false);
  const ExportPlan plan = testing::PlanFor(source_, GetParam().scheme);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto shards, Shards(plan));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto records, RecordFolder::Create(plan, root_ + "/records",
                                                                    RecordFolder::Kind::kRecords));
  const auto written = testing::RandomBlock(plan, 1);
  for (const RecordFolder* folder : {shards.get(), records.get()}) {
    ASSERT_THAT(folder->WriteBlock(1, written, *reader_, cancel_), IsOk());
    PTQ_ASSERT_OK_AND_ASSIGN(const auto read, folder->ReadBlock(1));
    ASSERT_EQ(read.size(), 7u);
    for (size_t i = 0; i < read.size(); ++i) {
      SCOPED_TRACE(read[i].module);
      EXPECT_EQ(read[i].module, written[i].module);
      testing::ExpectSameRecord(read[i].weight, written[i].weight);
    }
  }
  PTQ_ASSERT_OK_AND_ASSIGN(const auto names, ListDirectory(root_ + "/records"));
  EXPECT_THAT(names, ElementsAre("block-00001.safetensors"));
}

INSTANTIATE_TEST_SUITE_P(
    Schemes, RecordSchemeTest,
    ::testing::Values(Scheme{"w4g32", {.bits = 4, .group_size = 32}},
                      Scheme{"w2g32asym", {.bits = 2, .group_size = 32, .symmetric = false}},
                      Scheme{"w3channel", {.bits = 3, .group_size = -1}},
                      Scheme{"w5tensor", {.bits = 5, .group_size = 0, .symmetric = false}},
                      Scheme{"w8channel", {.bits = 8, .group_size = -1}},
                      Scheme{"w8channelasym", {.bits = 8, .group_size = -1, .symmetric = false}},
                      Scheme{"w4torchao", {4, 32, true, ScaleRule::kTorchao}},
                      Scheme{"w8torchao", {8, -1, true, ScaleRule::kTorchao}}),
    [](const ::testing::TestParamInfo<Scheme>& test) { return test.param.name; });

TEST_F(RecordFolderTest, GoldenTensors) {
  // Computed by torchao 0.18.
  WriteSource(true);
  const QuantizationScheme scheme = {.bits = 4, .group_size = 32, .symmetric = false};
  const ExportPlan plan = testing::PlanFor(source_, scheme);
  auto modules = testing::RandomBlock(plan, 0);
  ASSERT_EQ(modules[0].module, kQProj);
  AffineQuantizedTensor& golden = modules[0].weight;
  for (int64_t n = 0; n < 32; ++n) {
    for (int64_t k = 0; k < 64; ++k) {
      const int64_t code = (7 * n + 3 * k + (n * k) % 5) % 16;
      golden.int_data.mutable_data_ptr<int8_t>()[n * 64 + k] = static_cast<int8_t>(code - 8);
    }
    for (int64_t g = 0; g < 2; ++g) {
      const int64_t zero = 1 + (n + 3 * g) % 15;
      golden.zero_point.mutable_data_ptr<int32_t>()[n * 2 + g] = static_cast<int32_t>(zero - 8);
      golden.scale.mutable_data_ptr<at::Half>()[n * 2 + g] =
          static_cast<float>(n + 1 + 2 * g) / 64.0f;
    }
  }
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Shards(plan));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto digest, folder->WriteBlock(0, modules, *reader_, cancel_));
  const std::string path = Out(folder->FileName(0));
  EXPECT_EQ(path, Out("model-00002-of-00004.safetensors"));
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string bytes, ReadFile(path));
  EXPECT_EQ(Sha256Hex(bytes), digest);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto file, ReadableFile::Open(path));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto header, ReadSafetensorsHeader(file));
  std::map<std::string, std::string> digests;
  for (const TensorInfo& tensor : header.tensors) {
    digests[tensor.name] = Sha256Hex(
        std::string_view(bytes).substr(static_cast<size_t>(header.data_offset + tensor.begin),
                                       static_cast<size_t>(tensor.bytes())));
  }
  const std::string prefix = std::string(kQProj) + "._weight_";
  EXPECT_EQ(digests[prefix + "qdata"],
            "82fe46a5834ca86247bd376e6b06f083774e87d3eea1eacc27df57e147120397");
  EXPECT_EQ(digests[prefix + "zero_point"],
            "399a69f25ed72455aade9dc6adb35d3982e73cfd9560661942b422a362513a0e");
  EXPECT_EQ(digests[prefix + "scale"],
            "315e59c7498780a7be040381d3553ac8f782815c7b5bdbf2e654eb69d6dbd093");
  // Every shard lists all parameters of the model, of other shards too.
  EXPECT_TRUE(header.metadata.contains("model.layers.1.mlp.down_proj.weight"));
  EXPECT_TRUE(header.metadata.contains("model.norm.weight"));
  EXPECT_FALSE(header.metadata.contains("lm_head.weight"));
}

TEST_F(RecordFolderTest, AffineFolderIsComplete) {
  WriteSource(/*tied=*/false);
  ASSERT_THAT(WriteFileAtomically(root_ + "/source/tokenizer.json", "{ }"), IsOk());
  ASSERT_THAT(WriteFileAtomically(root_ + "/source/pytorch_model.bin.index.json", "{}"), IsOk());
  ExportPlan plan =
      testing::PlanFor(source_, {.bits = 4, .group_size = 32}, {"model.layers.1.mlp.up_proj"});
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Shards(plan));
  ASSERT_THAT(WriteAll(*folder, plan), IsOk());

  PTQ_ASSERT_OK_AND_ASSIGN(const auto names, ListDirectory(root_ + "/out"));
  EXPECT_THAT(names,
              ElementsAre("config.json", "generation_config.json",
                          "model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors",
                          "model-00003-of-00004.safetensors", "model-00004-of-00004.safetensors",
                          "model.safetensors.index.json", "tokenizer.json"));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto generation, ReadFile(Out("generation_config.json")));
  EXPECT_EQ(generation, "{\"x\":  1}");

  PTQ_ASSERT_OK_AND_ASSIGN(const auto config_text, ReadFile(Out("config.json")));
  PTQ_ASSERT_OK_AND_ASSIGN(Json config, ParseJson(config_text));
  EXPECT_EQ(config["quantization_config"]["modules_to_not_convert"],
            Json({"lm_head", "model.layers.1.mlp.up_proj"}));
  config.erase("quantization_config");
  EXPECT_EQ(DumpJson(config), DumpJson(testing::TinyConfig(false)));

  PTQ_ASSERT_OK_AND_ASSIGN(const auto index_text, ReadFile(Out("model.safetensors.index.json")));
  PTQ_ASSERT_OK_AND_ASSIGN(const Json index, ParseJson(index_text));
  const Json& map = index["weight_map"];
  EXPECT_EQ(map["model.embed_tokens.weight"], "model-00001-of-00004.safetensors");
  EXPECT_EQ(map[std::string(kQProj) + "._weight_scale"], "model-00002-of-00004.safetensors");
  EXPECT_EQ(map["model.layers.1.mlp.up_proj.weight"], "model-00003-of-00004.safetensors");
  EXPECT_EQ(map["model.norm.weight"], "model-00004-of-00004.safetensors");
  EXPECT_EQ(map["lm_head.weight"], "model-00004-of-00004.safetensors");

  // Read as any checkpoint: files, index and tensors close, total_size is right, plain tensors
  // equal.
  PTQ_ASSERT_OK_AND_ASSIGN(const auto written, CheckpointIndex::Open(root_ + "/out"));
  EXPECT_EQ(written.tensors().size(), map.size());
  EXPECT_EQ(written.total_bytes(), index["metadata"]["total_size"].get<int64_t>());
  PTQ_ASSERT_OK_AND_ASSIGN(const auto out, SafetensorsCheckpointReader::Open(written));
  for (const char* name : {"lm_head.weight", "model.layers.1.mlp.up_proj.weight",
                           "model.layers.0.input_layernorm.weight"}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor copied, out->Read(name));
    PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor original, reader_->Read(name));
    EXPECT_EQ(copied.scalar_type(), original.scalar_type()) << name;
    EXPECT_TRUE(copied.equal(original)) << name;
  }
}

TEST_F(RecordFolderTest, SameRecordsGiveTheSameBytes) {
  WriteSource(true);
  const ExportPlan plan = testing::PlanFor(source_, {.bits = 4, .group_size = 32});
  const auto modules = testing::RandomBlock(plan, 0);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Shards(plan));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto first, folder->WriteBlock(0, modules, *reader_, cancel_));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto read, folder->ReadBlock(0));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto again, Shards(plan));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto second, again->WriteBlock(0, read, *reader_, cancel_));
  EXPECT_EQ(first, second);
}

TEST_F(RecordFolderTest, DamagedShardsAreDataLoss) {
  WriteSource(true);
  const ExportPlan plan = testing::PlanFor(source_, {.bits = 4, .group_size = 32});
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Shards(plan));
  EXPECT_THAT(folder->ReadBlock(0), StatusIs(absl::StatusCode::kNotFound, HasSubstr("00002-of")));
  ASSERT_THAT(folder->WriteBlock(0, testing::RandomBlock(plan, 0), *reader_, cancel_), IsOk());
  const std::string path = Out(folder->FileName(0));
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string good, ReadFile(path));

  const auto with = [&](const std::string& bytes) {
    EXPECT_THAT(WriteFileAtomically(path, bytes), IsOk());
    return folder->ReadBlock(0).status();
  };
  EXPECT_THAT(with(good), IsOk());
  constexpr auto kDataLoss = absl::StatusCode::kDataLoss;
  EXPECT_THAT(with(good.substr(0, good.size() - 1)), StatusIs(kDataLoss, HasSubstr("00002-of")));
  EXPECT_THAT(with(good.substr(0, 20)), StatusIs(kDataLoss, HasSubstr("00002-of")));
  std::string code_out_of_range =
      good;  // the last tensor by name is a zero point: a code before it
  const auto zero_points = good.size() - 1;
  code_out_of_range[zero_points] = 1;
  EXPECT_THAT(with(code_out_of_range), StatusIs(kDataLoss, HasSubstr("v_proj")));
  std::string other_metadata = good;
  other_metadata.replace(other_metadata.find("int4"), 4, "int5");
  EXPECT_THAT(with(other_metadata), StatusIs(kDataLoss, HasSubstr("another scheme")));
}

TEST_F(RecordFolderTest, RecordsThatDoNotFitThePlanAreRefused) {
  WriteSource(true);
  const ExportPlan plan = testing::PlanFor(source_, {.bits = 4, .group_size = 32});
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Shards(plan));
  const auto good = testing::RandomBlock(plan, 0);
  const auto with = [&](auto change) {
    auto modules = good;
    change(modules[0].weight);
    return folder->WriteBlock(0, modules, *reader_, cancel_).status();
  };
  const auto refused = [](const char* field) {
    return StatusIs(absl::StatusCode::kFailedPrecondition,
                    AllOf(HasSubstr(kQProj), HasSubstr(field)));
  };
  using Record = AffineQuantizedTensor;
  EXPECT_THAT(with([](Record& r) { r.bits = 3; }), refused("bits"));
  EXPECT_THAT(with([](Record& r) { r.quant_min = -7; }), refused("quant_min"));
  EXPECT_THAT(with([](Record& r) { r.block_size = {1, 64}; }), refused("block_size"));
  EXPECT_THAT(with([](Record& r) { r.int_data = r.int_data.to(at::kInt); }), refused("int_data"));
  EXPECT_THAT(with([](Record& r) { r.int_data = r.int_data + 9; }), refused("int_data"));
  EXPECT_THAT(with([](Record& r) { r.scale = r.scale.to(at::kFloat); }), refused("scale"));
  EXPECT_THAT(with([](Record& r) { r.scale = r.scale * 0; }), refused("scale holds 0"));
  EXPECT_THAT(with([](Record& r) { r.scale = r.scale / 0; }), refused("scale holds NaN"));
  EXPECT_THAT(with([](Record& r) { r.zero_point = r.zero_point + 1; }), refused("symmetric"));
  EXPECT_THAT(with([](Record& r) { r.zero_point_domain = ZeroPointDomain::kFloat; }),
              refused("zero_point_domain"));
  EXPECT_THAT(folder->WriteBlock(0, {good.begin(), good.end() - 1}, *reader_, cancel_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("6 modules")));
  EXPECT_THAT(folder->WriteBlock(3, good, *reader_, cancel_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("block 3")));
  // That is the head, of which the plan has nothing.
  EXPECT_THAT(folder->WriteBlock(2, good, *reader_, cancel_),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("0 were planned")));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto names, ListDirectory(root_ + "/out"));
  EXPECT_TRUE(names.empty());
}

TEST_F(RecordFolderTest, EmbeddingAndHeadHaveRecordsLikeABlock) {
  WriteSource(/*tied=*/false);
  const QuantizationScheme scheme = {.bits = 8, .group_size = 32};
  ExportPlan plan = testing::PlanFor(source_, {.bits = 4, .group_size = 32});
  const PlannedModule embedding = {.module = "model.embed_tokens",
                                   .out_features = 50,
                                   .in_features = 64,
                                   .scheme = scheme,
                                   .place = ModulePlace::kEmbedding};
  const PlannedModule head = {.module = "lm_head",
                              .out_features = 50,
                              .in_features = 64,
                              .scheme = scheme,
                              .place = ModulePlace::kHead};
  plan.modules.insert(plan.modules.begin(), embedding);
  plan.modules.push_back(head);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto shards, Shards(plan));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto records, RecordFolder::Create(plan, root_ + "/records",
                                                                    RecordFolder::Kind::kRecords));
  EXPECT_EQ(records->FileName(kEmbeddingBlock), "embedding.safetensors");
  EXPECT_EQ(records->FileName(2), "head.safetensors");
  EXPECT_EQ(shards->FileName(kEmbeddingBlock), "model-00001-of-00004.safetensors");
  EXPECT_EQ(shards->FileName(2), "model-00004-of-00004.safetensors");
  for (const auto& [block, module] : {std::pair{kEmbeddingBlock, embedding}, {int64_t{2}, head}}) {
    at::manual_seed(3 + block);
    const QuantizedModule written = {module.module,
                                     testing::RandomRecord(scheme, 50, 64, at::kFloat)};
    for (const RecordFolder* folder : {shards.get(), records.get()}) {
      ASSERT_THAT(folder->WriteBlock(block, {written}, *reader_, cancel_), IsOk());
      PTQ_ASSERT_OK_AND_ASSIGN(const auto read, folder->ReadBlock(block));
      ASSERT_EQ(read.size(), 1u);
      EXPECT_EQ(read[0].module, module.module);
      testing::ExpectSameRecord(read[0].weight, written.weight);
    }
  }
  ASSERT_THAT(WriteAll(*shards, plan), IsOk());
  // Nothing is left of the plain ones, and the norm shares the head's shard.
  PTQ_ASSERT_OK_AND_ASSIGN(const auto index, CheckpointIndex::Open(root_ + "/out"));
  EXPECT_EQ(index.Find("model.embed_tokens.weight"), nullptr);
  EXPECT_EQ(index.Find("lm_head.weight"), nullptr);
  EXPECT_EQ(index.Find("model.norm.weight")->file, shards->FileName(2));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto left, shards->WriteOuterShards(*reader_, cancel_));
  EXPECT_TRUE(left.empty());
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string text, ReadFile(Out("config.json")));
  const Json config = ParseJson(text).value()["quantization_config"];
  EXPECT_EQ(config["include_input_output_embeddings"], true);
  EXPECT_EQ(config["modules_to_not_convert"], Json::array());
}

TEST_F(RecordFolderTest, PlansThatDoNotFitTheModelAreRefused) {
  WriteSource(true);
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  ExportPlan plan = testing::PlanFor(source_, {.bits = 4, .group_size = 32});
  plan.modules[0].module = "model.embed_tokens";
  EXPECT_THAT(Shards(plan), StatusIs(kInvalid, HasSubstr("model.embed_tokens")));
  plan = testing::PlanFor(source_, {.bits = 4, .group_size = 48});
  EXPECT_THAT(Shards(plan), StatusIs(kInvalid, HasSubstr("48")));
  plan = testing::PlanFor(source_, {.bits = 4, .group_size = 32});
  plan.modules.push_back(plan.modules[0]);
  EXPECT_THAT(Shards(plan), StatusIs(kInvalid, HasSubstr("twice")));
}

TEST_F(RecordFolderTest, FinalizeNeedsEveryBlockAndWritesNoConfigBefore) {
  WriteSource(true);
  const ExportPlan plan = testing::PlanFor(source_, {.bits = 4, .group_size = 32});
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Shards(plan));
  ASSERT_THAT(folder->WriteBlock(0, testing::RandomBlock(plan, 0), *reader_, cancel_), IsOk());
  ASSERT_THAT(folder->WriteOuterShards(*reader_, cancel_), IsOk());
  EXPECT_THAT(folder->Finalize(),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("model-00003-of-00004")));
  EXPECT_FALSE(PathExists(Out("config.json")));
  EXPECT_FALSE(PathExists(Out("model.safetensors.index.json")));
}

TEST_F(RecordFolderTest, OuterShardsAreTheSourcesTensorsByteForByteAndCanBeStopped) {
  WriteSource(false);
  const ExportPlan plan = testing::PlanFor(source_, {.bits = 4, .group_size = 32});
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Shards(plan));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto digests, folder->WriteOuterShards(*reader_, cancel_));
  EXPECT_EQ(digests.size(), 2);
  for (const auto& [name, digest] : digests) {
    const std::string path = Out(name);
    PTQ_ASSERT_OK_AND_ASSIGN(const std::string sha256, Sha256File(path));
    EXPECT_EQ(digest, sha256);
    PTQ_ASSERT_OK_AND_ASSIGN(const auto file, ReadableFile::Open(path));
    PTQ_ASSERT_OK_AND_ASSIGN(const SafetensorsHeader header, ReadSafetensorsHeader(file));
    ASSERT_FALSE(header.tensors.empty());
    for (const TensorInfo& info : header.tensors) {
      PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor source, reader_->Read(info.name));
      std::string bytes(static_cast<size_t>(info.bytes()), '\0');
      ASSERT_THAT(file.ReadAt(header.data_offset + info.begin, bytes.data(), bytes.size()), IsOk());
      ASSERT_EQ(bytes.size(), source.nbytes());
      EXPECT_EQ(std::memcmp(bytes.data(), source.const_data_ptr(), bytes.size()), 0) << info.name;
    }
    ASSERT_EQ(::unlink(path.c_str()), 0);
  }
  cancel_.Cancel();
  EXPECT_THAT(folder->WriteOuterShards(*reader_, cancel_),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr("stop")));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto names, ListDirectory(root_ + "/out"));
  EXPECT_TRUE(names.empty());
}

TEST_F(RecordFolderTest, NanInAnUnquantizedTensorIsNamedAndLeavesNoShard) {
  WriteSource(true);
  std::vector<NamedTensor> tensors;
  for (const auto& [name, entry] : source_.index.tensors()) {
    PTQ_ASSERT_OK_AND_ASSIGN(at::Tensor tensor, reader_->Read(name));
    if (name == "model.layers.0.input_layernorm.weight") tensor.fill_(NAN);
    tensors.push_back({name, tensor});
  }
  ASSERT_THAT(WriteSafetensors(root_ + "/source/model.safetensors", tensors, {{"format", "pt"}}),
              IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(auto index, CheckpointIndex::Open(root_ + "/source"));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto reader, SafetensorsCheckpointReader::Open(index));
  const ExportPlan plan = testing::PlanFor(source_, {.bits = 4, .group_size = 32});
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Shards(plan));
  EXPECT_THAT(folder->WriteBlock(0, testing::RandomBlock(plan, 0), *reader, cancel_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("input_layernorm")));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto names, ListDirectory(root_ + "/out"));
  EXPECT_TRUE(names.empty());
}

}  // namespace
}  // namespace ptq
