#include "worker/job_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "common/file.h"
#include "common/sha256.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::ptq::testing::IsOk;
using ::ptq::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class JobFolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "job_folder_XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    path_ = JoinPath(root_, "output");
    identity_.spec = {{"algorithm", "rtn"}, {"bits", 4}};
    identity_.inputs = {{"model", {{{"path", "config.json"}, {"sha256", "00"}}}},
                        {"calibration", nullptr},
                        {"evaluation", nullptr}};
    identity_.environment = {{"engine_version", "1"}, {"device", "cpu"}};
  }
  void TearDown() override { ASSERT_THAT(RemoveTree(root_), IsOk()); }

  absl::StatusOr<std::unique_ptr<JobFolder>> Open() {
    JobIdentity identity = identity_;
    identity.inputs = nullptr;
    return JobFolder::Open(
        path_, identity,
        [this]() -> absl::StatusOr<Json> {
          ++asked_for_inputs_;
          if (!inputs_status_.ok()) return inputs_status_;
          return identity_.inputs;
        },
        cancel_);
  }
  // One whose job has finished no block, and knows its inputs.
  void Identify() {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
    ASSERT_THAT(folder->Identify(), IsOk());
  }
  void WriteFile(const std::string& name, const std::string& data) {
    ASSERT_THAT(WriteFileAtomically(JoinPath(path_, name), data), IsOk());
  }
  // As the pipeline does: the shard, then its manifest.
  void FinishBlock(JobFolder& folder, int block) {
    const std::string shard = "model-0000" + std::to_string(block + 2) + "-of-00005.safetensors";
    const std::string data = "shard " + std::to_string(block);
    WriteFile(shard, data);
    ASSERT_THAT(folder.FinishBlock(shard, Sha256Hex(data), Json{{"name", std::to_string(block)}}),
                IsOk());
  }
  Json ReportOf(const std::string& name, const std::string& data) {
    Json report;
    report["spec"] = identity_.spec;
    report["spec"]["model"] = "/somewhere";
    report["inputs"] = identity_.inputs;
    report["environment"] = identity_.environment;
    report["outputs"] = Json::array({Json{{"path", name}, {"sha256", Sha256Hex(data)}}});
    return report;
  }
  std::vector<std::string> Files() { return ListDirectory(path_).value(); }

  std::string root_;
  std::string path_;
  JobIdentity identity_;
  absl::Status inputs_status_;
  int asked_for_inputs_ = 0;
  CancellationToken cancel_;
};

TEST_F(JobFolderTest, ANewFolderHasNoBlocks) {
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
  EXPECT_THAT(folder->finished_blocks(), IsEmpty());
  EXPECT_FALSE(folder->finished_report());
  EXPECT_TRUE(IsDirectory(folder->record_folder()));
}

TEST_F(JobFolderTest, ContinuesAfterFinishedBlocks) {
  {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
    FinishBlock(*folder, 0);
    FinishBlock(*folder, 1);
  }
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
  EXPECT_THAT(folder->finished_blocks(), SizeIs(2));
  EXPECT_EQ(folder->finished_blocks()[1]["name"], "1");
  EXPECT_THAT(folder->shard_digests(), ElementsAre(Sha256Hex("shard 0"), Sha256Hex("shard 1")));
}

TEST_F(JobFolderTest, RemembersHowTheJobUsesMemory) {
  const Json memory = {{"micro_batches", {{"tuning", 4}}}};
  {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
    EXPECT_TRUE(folder->memory().is_null());
    ASSERT_THAT(folder->SetMemory({{"micro_batches", {{"tuning", 8}}}}), IsOk());
    ASSERT_THAT(folder->SetMemory(memory), IsOk());
    ASSERT_THAT(folder->Identify(), IsOk());
  }
  {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
    EXPECT_EQ(folder->memory(), memory);
  }
  // Where nothing is continued, nothing binds.
  identity_.environment["engine_version"] = "2";
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
  EXPECT_TRUE(folder->memory().is_null());
}

TEST_F(JobFolderTest, ADamagedShardIsRedoneWithAllAfterIt) {
  {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
    for (int block = 0; block < 3; ++block) FinishBlock(*folder, block);
  }
  WriteFile("model-00003-of-00005.safetensors", "flipped");
  {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
    EXPECT_THAT(folder->finished_blocks(), SizeIs(1));
    EXPECT_THAT(folder->warnings(), ElementsAre(HasSubstr("model-00003-of-00005")));
  }
  // Block 2 stays forgotten although its own shard was whole.
  WriteFile("model-00003-of-00005.safetensors", "shard 1");
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
  EXPECT_THAT(folder->finished_blocks(), SizeIs(1));
}

TEST_F(JobFolderTest, RefusesAnotherSpecSayingWhatDiffers) {
  Identify();
  identity_.spec["bits"] = 3;
  EXPECT_THAT(Open(),
              StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("bits is 4 there and 3 here")));
}

TEST_F(JobFolderTest, RefusesOtherInputContent) {
  Identify();
  identity_.inputs["model"][0]["sha256"] = "01";
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("model input")));
}

TEST_F(JobFolderTest, RefusesAFolderWithForeignFiles) {
  ASSERT_THAT(MakeDirectories(path_), IsOk());
  WriteFile("thesis.tex", "");
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("thesis.tex")));
  EXPECT_THAT(Files(), ElementsAre("thesis.tex"));
}

TEST_F(JobFolderTest, RecordsOfAnotherEngineAreDiscarded) {
  {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
    FinishBlock(*folder, 0);
  }
  WriteFile("notes.txt", "mine");
  identity_.environment["engine_version"] = "2";
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
  EXPECT_THAT(folder->finished_blocks(), IsEmpty());
  EXPECT_THAT(folder->warnings(), ElementsAre(HasSubstr("engine_version")));
  EXPECT_THAT(Files(), ElementsAre(".ptq-worker", "notes.txt"));
}

TEST_F(JobFolderTest, RemovesTemporaryFilesOfAKilledRun) {
  Identify();
  WriteFile("model-00002-of-00005.safetensors.tmp.123.0", "half");
  WriteFile(".ptq-worker/block-00000.json.tmp.123.1", "half");
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
  EXPECT_THAT(Files(), ElementsAre(".ptq-worker"));
  EXPECT_FALSE(PathExists(JoinPath(path_, ".ptq-worker/block-00000.json.tmp.123.1")));
}

TEST_F(JobFolderTest, AFinishedFolderHoldsNoStateAndIsRecognised) {
  {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
    WriteFile("config.json", "{}");
    ASSERT_THAT(folder->Identify(), IsOk());
    ASSERT_THAT(folder->Finish("<html>", ReportOf("config.json", "{}")), IsOk());
  }
  EXPECT_THAT(Files(), ElementsAre("config.json", "report.html", "report.json"));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
  EXPECT_TRUE(folder->finished_report());
  EXPECT_THAT(Files(), ElementsAre("config.json", "report.html", "report.json"));
}

TEST_F(JobFolderTest, ADamagedResultIsDoneAgain) {
  {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
    WriteFile("config.json", "{}");
    ASSERT_THAT(folder->Identify(), IsOk());
    ASSERT_THAT(folder->Finish("<html>", ReportOf("config.json", "{}")), IsOk());
  }
  WriteFile("config.json", "{ }");
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
  EXPECT_FALSE(folder->finished_report());
  EXPECT_THAT(folder->warnings(), ElementsAre(HasSubstr("config.json")));
  EXPECT_THAT(Files(), ElementsAre(".ptq-worker"));
}

TEST_F(JobFolderTest, AReportThatNamesFilesOutsideIsNotBelieved) {
  {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
    ASSERT_THAT(folder->Identify(), IsOk());
    ASSERT_THAT(folder->Finish("<html>", ReportOf("../secret", "")), IsOk());
  }
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
  EXPECT_FALSE(folder->finished_report());
}

TEST_F(JobFolderTest, AFreshFolderAsksForItsInputsWhenTheFirstBlockIsFinished) {
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
  EXPECT_EQ(asked_for_inputs_, 0);
  EXPECT_TRUE(folder->identity().inputs.is_null());
  FinishBlock(*folder, 0);
  FinishBlock(*folder, 1);
  EXPECT_EQ(asked_for_inputs_, 1);
  EXPECT_EQ(folder->identity().inputs, identity_.inputs);
}

TEST_F(JobFolderTest, AFolderWithFinishedBlocksAsksBeforeItUsesThem) {
  {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
    FinishBlock(*folder, 0);
  }
  asked_for_inputs_ = 0;
  inputs_status_ = absl::DataLossError("a file became shorter");
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("shorter")));
  EXPECT_EQ(asked_for_inputs_, 1);
  inputs_status_ = absl::OkStatus();
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
  EXPECT_THAT(folder->finished_blocks(), SizeIs(1));
}

TEST_F(JobFolderTest, WithoutItsInputsNoBlockIsFinishedAndNothingStays) {
  {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
    inputs_status_ = absl::PermissionDeniedError("model.safetensors");
    WriteFile("model-00002-of-00005.safetensors", "shard 0");
    EXPECT_THAT(folder->FinishBlock("model-00002-of-00005.safetensors", Sha256Hex("shard 0"), {}),
                StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("model.safetensors")));
    EXPECT_THAT(folder->finished_blocks(), IsEmpty());
    EXPECT_FALSE(PathExists(JoinPath(path_, ".ptq-worker/block-00000.json")));
  }
  EXPECT_THAT(Files(), IsEmpty());
}

TEST_F(JobFolderTest, WhatARunLeftThatWasKilledBeforeItKnewItsInputsIsDiscarded) {
  {
    PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
    WriteFile("model-00002-of-00005.safetensors", "shard 0");
    WriteFile("model-00003-of-00005.safetensors.tmp.123.0", "half");
    WriteFile(".ptq-worker/fisher.json", "{}");
    std::filesystem::copy(path_, JoinPath(root_, "killed"),
                          std::filesystem::copy_options::recursive);
  }
  path_ = JoinPath(root_, "killed");
  identity_.spec["bits"] = 3;  // even another job may take the folder
  PTQ_ASSERT_OK_AND_ASSIGN(const auto folder, Open());
  EXPECT_EQ(asked_for_inputs_, 0);
  EXPECT_THAT(folder->warnings(), IsEmpty());
  EXPECT_THAT(Files(), ElementsAre(".ptq-worker"));
  EXPECT_FALSE(PathExists(JoinPath(path_, ".ptq-worker/fisher.json")));
}

TEST_F(JobFolderTest, TwoWorkersDoNotShareAFolder) {
  PTQ_ASSERT_OK_AND_ASSIGN(const auto first, Open());
  cancel_.Cancel();  // does not wait out the patience
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kCancelled, HasSubstr("stop")));
}

}  // namespace
}  // namespace ptq
