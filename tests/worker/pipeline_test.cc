// Jobs whose device memory runs out: they go on with less, end clearly, and resume to the same
// bits.
#include "worker/pipeline.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>

#include "algorithms/rtn/rtn.h"
#include "formats/safetensors_writer.h"
#include "tests/formats/tiny_checkpoint.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::ptq::testing::IsOk;
using ::ptq::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// What happens in which call of QuantizeBlock, the first being 0.
enum class Fault { kOutOfDeviceMemory, kOutOfHostMemory, kCancelled };
using Faults = std::map<int, Fault>;

class FaultyQuantizer final : public BlockQuantizer {
 public:
  FaultyQuantizer(std::unique_ptr<BlockQuantizer> inner, const Faults& faults, int& calls)
      : inner_(std::move(inner)), faults_(faults), calls_(calls) {}

  absl::StatusOr<QuantizedBlock> QuantizeBlock(const BlockQuantizationRequest& request) override {
    const auto fault = faults_.find(calls_++);
    if (fault == faults_.end()) return inner_->QuantizeBlock(request);
    switch (fault->second) {
      case Fault::kOutOfDeviceMemory:
        TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory.");
      case Fault::kOutOfHostMemory:
        return absl::ResourceExhaustedError("No space left on device");
      case Fault::kCancelled:
        return absl::CancelledError("stopped");
    }
    return absl::InternalError("no such fault");
  }

 private:
  const std::unique_ptr<BlockQuantizer> inner_;
  const Faults& faults_;
  int& calls_;
};

class PipelineMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "/pipeline_" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_THAT(RemoveTree(root_), IsOk());
    ASSERT_THAT(MakeDirectories(root_), IsOk());
    ASSERT_THAT(testing::WriteTinyCheckpoint(root_ + "/model", false), IsOk());
    at::manual_seed(2);
    const std::string calibration = root_ + "/ids.safetensors";
    ASSERT_THAT(
        WriteSafetensors(calibration,
                         {NamedTensor{"input_ids", at::randint(3, 50, {12, 16}, at::kLong)}}, {}),
        IsOk());
    spec_.model = root_ + "/model";
    spec_.calibration = calibration;
    spec_.recipe = TuningRecipe::kPaper;
    spec_.iterations = 3;
    spec_.samples = 10;
    spec_.batch_size = 8;
    spec_.sequence_length = 16;
    spec_.group_size = 32;
    spec_.device = DeviceChoice::kCpu;
    PTQ_ASSERT_OK_AND_ASSIGN(plan_, PlanJob(spec_));
  }
  void TearDown() override { ASSERT_THAT(RemoveTree(root_), IsOk()); }

  // One run of a worker in the folder `name`: the result's digest.
  absl::StatusOr<std::string> Run(const std::string& name, const Faults& faults) {
    int calls = 0;
    const CancellationToken cancel;
    InputDigests inputs(plan_.spec, cancel);
    const JobIdentity identity = {
        .spec = SpecWithoutPaths(plan_.spec), .inputs = {}, .environment = {{"device", "cpu"}}};
    PTQ_ASSIGN_OR_RETURN(const auto folder,
                         JobFolder::Open(
                             root_ + "/" + name, identity, [&] { return inputs.Wait(); }, cancel));
    const int events_fd = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
    EventWriter events(events_fd, [] {});
    const BaselineCache cache("");
    Pipeline pipeline(plan_, inputs, *folder, cache, events, cancel,
                      [&](const JobPlan& plan, const MicroBatches& sizes) {
                        return std::make_unique<FaultyQuantizer>(MakeBlockQuantizer(plan, sizes),
                                                                 faults, calls);
                      });
    absl::StatusOr<std::string> digest = pipeline.Run(0);
    ::close(events_fd);
    return digest;
  }
  Json Report(const std::string& name) {
    return ParseJson(ReadFile(root_ + "/" + name + "/report.json").value()).value();
  }

  std::string root_;
  JobSpec spec_;
  JobPlan plan_;
};

TEST_F(PipelineMemoryTest, ABlockThatDoesNotFitIsDoneInSmallerPieces) {
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string whole, Run("whole", {}));
  EXPECT_THAT(Report("whole")["warnings"], IsEmpty());
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string lowered,
                           Run("lowered", {{1, Fault::kOutOfDeviceMemory}}));
  const Json report = Report("lowered");
  ASSERT_EQ(report["warnings"].size(), 1U);
  EXPECT_THAT(report["warnings"][0].get<std::string>(),
              AllOf(HasSubstr("Block 1 did not fit"), HasSubstr("5 windows in forward"),
                    HasSubstr("4 in tuning")));
  EXPECT_EQ(report["blocks"][0]["micro_batches"]["tuning"], 8);
  EXPECT_EQ(report["blocks"][1]["micro_batches"]["tuning"], 4);
  EXPECT_EQ(report["memory"]["micro_batches"]["forward"], 5);
  EXPECT_EQ(report["blocks_resumed"], 0);
  // The first block had been finished, and stays.
  EXPECT_EQ(report["blocks"][0]["loss_curve"], Report("whole")["blocks"][0]["loss_curve"]);
}

TEST_F(PipelineMemoryTest, AResumedJobKeepsTheMicroBatches) {
  const Faults once = {{0, Fault::kOutOfDeviceMemory}};
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string digest, Run("at once", once));
  // Stopped in the second block, which was the third call.
  EXPECT_THAT(Run("stopped", {{0, Fault::kOutOfDeviceMemory}, {2, Fault::kCancelled}}),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr("stopped")));
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string resumed, Run("stopped", {}));
  EXPECT_EQ(resumed, digest);
  const Json report = Report("stopped");
  EXPECT_EQ(report["blocks_resumed"], 1);
  EXPECT_EQ(report["warnings"], Report("at once")["warnings"]);
  EXPECT_EQ(report["memory"]["micro_batches"], Report("at once")["memory"]["micro_batches"]);
}

// Block 0 whole, block 1 in halves: the resumed run goes through each as it was made.
TEST_F(PipelineMemoryTest, AResumedJobReplaysEachBlockAsItWasMade) {
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string digest,
                           Run("at once", {{1, Fault::kOutOfDeviceMemory}}));
  EXPECT_THAT(Run("stopped", {{1, Fault::kOutOfDeviceMemory}, {2, Fault::kCancelled}}),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr("stopped")));
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string resumed, Run("stopped", {}));
  EXPECT_EQ(resumed, digest);
  EXPECT_EQ(Report("stopped")["blocks"][0]["micro_batches"]["forward"], 10);
}

TEST_F(PipelineMemoryTest, AfterTwoHalvingsTheJobEndsWithAdvice) {
  const Faults always = {{1, Fault::kOutOfDeviceMemory},
                         {2, Fault::kOutOfDeviceMemory},
                         {3, Fault::kOutOfDeviceMemory}};
  EXPECT_THAT(Run("out", always),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("Block 1: the GPU's memory is not enough"),
                             HasSubstr("micro-batches of 2 windows of 16 tokens"),
                             HasSubstr("low_memory"))));
  // Whoever continues it elsewhere keeps what was lowered.
  ASSERT_THAT(Run("out", {}), IsOk());
  EXPECT_EQ(Report("out")["memory"]["micro_batches"]["tuning"], 2);
  EXPECT_EQ(Report("out")["warnings"].size(), 2U);
}

struct HeadCase {
  Algorithm algorithm;
  const char* reason;  // of the head; "" for none
};

class HeadAndEmbeddingTest : public PipelineMemoryTest,
                             public ::testing::WithParamInterface<HeadCase> {
 protected:
  void SetUp() override {
    PipelineMemoryTest::SetUp();
    spec_.algorithm = GetParam().algorithm;
    if (spec_.algorithm != Algorithm::kAutoRound) {
      spec_.recipe = JobSpec().recipe;
      spec_.iterations = JobSpec().iterations;
      spec_.batch_size = JobSpec().batch_size;
    }
    spec_.rule = {"lm_head:bits=3", "model.embed_tokens:bits=2"};
    spec_.format = {"affine", "dequantized"};
    PTQ_ASSERT_OK_AND_ASSIGN(plan_, PlanJob(spec_));
  }
  at::Tensor Weight(const std::string& folder, const std::string& name) {
    const auto index = CheckpointIndex::Open(root_ + "/" + folder).value();
    return SafetensorsCheckpointReader::Open(index).value()->Read(name).value().to(at::kFloat);
  }
};

TEST_P(HeadAndEmbeddingTest, AStoppedJobGivesTheSameBytesAndTheReportSaysHow) {
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string digest, Run("whole", {}));
  EXPECT_THAT(Run("stopped", {{1, Fault::kCancelled}}),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr("stop")));
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string resumed, Run("stopped", {}));
  EXPECT_EQ(resumed, digest);
  const Json report = Report("stopped");
  EXPECT_EQ(report["blocks_resumed"], 1);
  ASSERT_EQ(report["blocks"].size(), 2U);
  ASSERT_EQ(report["outside_of_blocks"].size(), 2U);
  const Json& embedding = report["outside_of_blocks"][0];
  EXPECT_EQ(embedding["name"], "model.embed_tokens");
  EXPECT_EQ(embedding["bits"], 2);
  const bool rtn = spec_.algorithm == Algorithm::kRtn;
  EXPECT_EQ(embedding["fallback_reason"],
            rtn ? Json(nullptr) : Json("embedding: rtn (a table has no inputs)"));
  const Json& head = report["outside_of_blocks"][1];
  EXPECT_EQ(head["name"], "lm_head");
  EXPECT_EQ(head["bits"], 3);
  EXPECT_GT(head["relative_error"].get<double>(), 0);
  if (rtn) {
    EXPECT_EQ(head["output_mse"], head["rtn_output_mse"]);
  } else {
    EXPECT_LT(head["output_mse"].get<double>(), head["rtn_output_mse"].get<double>());
    EXPECT_EQ(head["tokens"], 160);
  }
  const std::string reason = head["fallback_reason"].is_null() ? "" : head["fallback_reason"];
  EXPECT_THAT(reason, HasSubstr(GetParam().reason));
  EXPECT_EQ(reason.empty(), std::string(GetParam().reason).empty());
  EXPECT_THAT(report["skipped_modules"], IsEmpty());
  // 16 bits a scale of 32 codes; a block's layers have 2 * 32 * 64 + 2 * 16 * 64 + 3 * 96 * 64.
  constexpr double kOutside = 50 * 64, kBlocks = 2 * 24576;
  EXPECT_DOUBLE_EQ(report["size"]["bits_per_weight"].get<double>(),
                   (kBlocks * 4.5 + kOutside * (2.5 + 3.5)) / (kBlocks + 2 * kOutside));

  const at::Tensor original = Weight("model", "model.embed_tokens.weight");
  const at::Tensor expected = Dequantize(
      QuantizeRtn(original.to(at::kBFloat16), at::kBFloat16, {2, 32, true}), at::kBFloat16);
  EXPECT_TRUE(
      Weight("whole/dequantized", "model.embed_tokens.weight").equal(expected.to(at::kFloat)));
  const at::Tensor head_weight = Weight("whole/dequantized", "lm_head.weight");
  EXPECT_FALSE(head_weight.equal(Weight("model", "lm_head.weight")));
  EXPECT_EQ(rtn, head_weight.equal(
                     Dequantize(QuantizeRtn(Weight("model", "lm_head.weight").to(at::kBFloat16),
                                            at::kBFloat16, {3, 32, true}),
                                at::kBFloat16)
                         .to(at::kFloat)));
}

INSTANTIATE_TEST_SUITE_P(Algorithms, HeadAndEmbeddingTest,
                         ::testing::Values(HeadCase{Algorithm::kRtn, ""},
                                           HeadCase{Algorithm::kOptRtn, ""},
                                           HeadCase{Algorithm::kGptq, ""},
                                           HeadCase{Algorithm::kAutoRound, "head: opt-rtn"}),
                         [](const auto& test) {
                           std::string name = AlgorithmName(test.param.algorithm);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST_F(PipelineMemoryTest, OtherShortagesAreNotTheDevices) {
  EXPECT_THAT(Run("disk", {{0, Fault::kOutOfHostMemory}}),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("No space left")));
}

}  // namespace
}  // namespace ptq
