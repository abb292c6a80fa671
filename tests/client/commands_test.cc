// Whole command lines against the fake server: what lands on which stream, and the exit status.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <sstream>
#include <thread>

#include "client/commands/command.h"
#include "client/output_folder.h"
#include "common/json.h"
#include "tests/client/fake_server.h"
#include "tests/client/scratch_folder.h"

namespace ptq {
namespace {

using ::ptq::testing::FakeServer;
using ::ptq::testing::kJob;
using ::ptq::testing::ScratchFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class CommandsTest : public ::testing::Test {
 protected:
  CommandsTest() {
    // A checkpoint whose architecture only the server knows: its headers are left to the server.
    folder_.Write("model/config.json", R"({"model_type": "from-the-future"})");
    folder_.Write("model/model.safetensors", std::string(8, '\0'));
    folder_.Write("model/tokenizer.json", "{}");
    folder_.Write("model/README.txt", "not needed");
    folder_.Write("text.jsonl", "{\"text\": \"x\"}\n");
  }

  ExitStatus Run(std::vector<std::string> arguments, InterruptListener* interrupts = nullptr) {
    out_.str("");
    err_.str("");
    CLI::App root;
    CommandLine line;
    BuildCommandLine(root, line);
    std::reverse(arguments.begin(), arguments.end());
    root.parse(arguments);
    Console console{out_, err_, {}, {}};
    InterruptListener own;
    QuantizationClient::Options options;
    options.server = "test:1";
    options.retry = {absl::Milliseconds(1), absl::Milliseconds(5), absl::Milliseconds(300)};
    Session session(console, interrupts != nullptr ? *interrupts : own, server_.Stubs(), options);
    return line.run(session);
  }
  ExitStatus Submit(std::vector<std::string> more) {
    std::vector<std::string> arguments = {"submit", folder_.Path("model"), "--algorithm", "rtn"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Run(arguments);
  }
  void FinishJob(v1::QuantizationJob::State state) {
    v1::QuantizationJob job = server_.AddJob(kJob, v1::QuantizationJob::RUNNING);
    server_.AddBlock(0, 2, 1);
    job.set_state(state);
    server_.AddSnapshot(job);
  }

  ScratchFolder folder_;
  FakeServer server_;
  std::ostringstream out_;
  std::ostringstream err_;
};

TEST_F(CommandsTest, SubmitPrintsTheNameAloneOnStandardOutput) {
  EXPECT_EQ(Submit({}), ExitStatus::kDone) << err_.str();
  EXPECT_EQ(out_.str(), std::string(kJob) + "\n");
  EXPECT_THAT(err_.str(), HasSubstr("Skipped 1 entry that no job needs: README.txt."));
  EXPECT_EQ(server_.state().last_request.spec().model(), "tenants/default/models/m1");
}

TEST_F(CommandsTest, ValidateOnlyPrintsTheJobSpecWithTheUsersPaths) {
  EXPECT_EQ(Submit({"--validate-only", "--json"}), ExitStatus::kDone) << err_.str();
  const auto spec = ParseJson(out_.str());
  ASSERT_TRUE(spec.ok()) << out_.str();
  EXPECT_EQ((*spec)["model"], folder_.Path("model"));
  EXPECT_EQ((*spec)["calibration"], "");
  EXPECT_EQ((*spec)["bits"], 4);
  EXPECT_TRUE(server_.state().last_request.validate_only());
}

TEST_F(CommandsTest, ServerPathsAreSentInsteadOfBytes) {
  EXPECT_EQ(Run({"submit", "/models/x", "--server-path", "--calibration", "/models/c.jsonl"}),
            ExitStatus::kDone)
      << err_.str();
  EXPECT_THAT(server_.state().upload_names, IsEmpty());
}

TEST_F(CommandsTest, AFolderWithOnlyPickleWeightsIsRefused) {
  folder_.Write("pickle/config.json", "{}");
  folder_.Write("pickle/pytorch_model.bin", "x");
  EXPECT_EQ(Run({"submit", folder_.Path("pickle"), "--algorithm", "rtn"}), ExitStatus::kRefused);
  EXPECT_THAT(err_.str(), HasSubstr("pickle"));
  EXPECT_THAT(out_.str(), IsEmpty());
  EXPECT_THAT(server_.state().upload_names, IsEmpty());
}

TEST_F(CommandsTest, LinksAreFollowedAsInASnapshotOfTheCache) {
  folder_.Write("blobs/1", std::string(8, '\0'));
  folder_.Write("snapshot/config.json", R"({"model_type": "from-the-future"})");
  ASSERT_EQ(::symlink("../blobs/1", folder_.Path("snapshot/model.safetensors").c_str()), 0);
  EXPECT_EQ(Run({"submit", folder_.Path("snapshot"), "--algorithm", "rtn"}), ExitStatus::kDone)
      << err_.str();
}

TEST_F(CommandsTest, WrongInputIsRefusedBeforeAnythingIsSent) {
  EXPECT_EQ(Submit({"--bits", "9"}), ExitStatus::kRefused);
  EXPECT_THAT(err_.str(), HasSubstr("--bits: 9"));
  EXPECT_EQ(Run({"submit", folder_.Path("absent"), "--algorithm", "rtn"}), ExitStatus::kRefused);
  EXPECT_THAT(err_.str(), HasSubstr("there is no folder"));
  EXPECT_EQ(Submit({"--calibration", folder_.Path("absent.jsonl")}), ExitStatus::kRefused);
  EXPECT_THAT(err_.str(), HasSubstr("--calibration: there is no file"));
  EXPECT_THAT(server_.state().upload_names, IsEmpty());
}

TEST_F(CommandsTest, QuantizeUploadsWatchesAndDownloads) {
  FinishJob(v1::QuantizationJob::SUCCEEDED);
  server_.AddArtifact("config.json", "{}");
  server_.state().report_json = R"({"size": {"bits_per_weight": 4.125}})";
  EXPECT_EQ(Run({"quantize", folder_.Path("model"), "--calibration", folder_.Path("text.jsonl"),
                 "--output", folder_.Path("out")}),
            ExitStatus::kDone)
      << err_.str();
  EXPECT_EQ(*ReadFile(folder_.Path("out/config.json")), "{}");
  EXPECT_THAT(out_.str(), HasSubstr("4.125"));
  EXPECT_THAT(out_.str(), Not(HasSubstr("Uploading")));
  EXPECT_THAT(err_.str(), HasSubstr(std::string("Job ") + kJob));
  EXPECT_THAT(err_.str(), HasSubstr("block 1/2  model.layers.0  1.5 s  loss 2.00 -> 1.00"));
}

TEST_F(CommandsTest, ConvertShowsWhatWasReadAndWritten) {
  FinishJob(v1::QuantizationJob::SUCCEEDED);
  server_.AddArtifact("model.gguf", "GGUF");
  server_.state().report_json =
      R"({"conversion": {"source": {"format": "gptq", "bytes": 2000},
          "results": [{"format": "gguf", "bytes": 3000}]}})";
  EXPECT_EQ(Run({"convert", "tenants/default/models/m7", "--format", "gguf", "--output",
                 folder_.Path("out")}),
            ExitStatus::kDone)
      << err_.str();
  EXPECT_EQ(server_.state().last_request.spec().model(), "tenants/default/models/m7");
  EXPECT_TRUE(server_.state().last_request.spec().has_convert());
  EXPECT_THAT(server_.state().upload_names, IsEmpty());
  EXPECT_EQ(*ReadFile(folder_.Path("out/model.gguf")), "GGUF");
  EXPECT_THAT(out_.str(), HasSubstr("gptq"));
  EXPECT_THAT(out_.str(), HasSubstr("gguf"));
}

TEST_F(CommandsTest, ConvertRefusesWhatIsNotQuantizedBeforeItUploads) {
  EXPECT_EQ(
      Run({"convert", folder_.Path("model"), "--format", "gguf", "--output", folder_.Path("out")}),
      ExitStatus::kRefused);
  EXPECT_THAT(err_.str(), HasSubstr("no quantization_config"));
  EXPECT_THAT(server_.state().upload_names, IsEmpty());
}

TEST_F(CommandsTest, QuantizeChecksItsOutputBeforeItUploads) {
  folder_.Write("out/mine", "x");
  EXPECT_EQ(Run({"quantize", folder_.Path("model"), "--algorithm", "rtn", "--output",
                 folder_.Path("out")}),
            ExitStatus::kRefused);
  EXPECT_THAT(err_.str(), HasSubstr("not empty"));
  EXPECT_THAT(server_.state().upload_names, IsEmpty());
}

TEST_F(CommandsTest, QuantizeRefusesAnotherJobsPartialDownload) {
  ASSERT_TRUE(BeginDownload(folder_.Path("out"), "tenants/default/quantizationJobs/old").ok());
  EXPECT_EQ(Run({"quantize", folder_.Path("model"), "--algorithm", "rtn", "--output",
                 folder_.Path("out")}),
            ExitStatus::kRefused);
  EXPECT_THAT(err_.str(), HasSubstr("ptq download old"));
}

TEST_F(CommandsTest, WatchEndsByTheJobsEnd) {
  FinishJob(v1::QuantizationJob::FAILED);
  server_.state().jobs[kJob].mutable_error()->set_code(3);
  server_.state().jobs[kJob].mutable_error()->set_message("NaN in model.layers.3");
  EXPECT_EQ(Run({"watch", "j1"}), ExitStatus::kJobFailed);
  EXPECT_THAT(err_.str(), HasSubstr("NaN in model.layers.3"));
  EXPECT_THAT(err_.str(), HasSubstr("ptq logs j1"));
  server_.state().jobs[kJob].set_state(v1::QuantizationJob::CANCELLED);
  EXPECT_EQ(Run({"watch", kJob}), ExitStatus::kJobFailed);
  EXPECT_THAT(err_.str(), HasSubstr("ptq resume j1"));
}

TEST_F(CommandsTest, WatchJsonIsOneObjectALine) {
  FinishJob(v1::QuantizationJob::SUCCEEDED);
  EXPECT_EQ(Run({"watch", "j1", "--json"}), ExitStatus::kDone);
  std::istringstream lines(out_.str());
  std::vector<std::string> types;
  for (std::string line; std::getline(lines, line);) {
    const auto json = ParseJson(line);
    ASSERT_TRUE(json.ok()) << line;
    types.push_back((*json)["type"]);
  }
  EXPECT_THAT(types, ElementsAre("snapshot", "block", "snapshot"));
}

TEST_F(CommandsTest, CtrlCDetachesAndASecondOneCancels) {
  server_.AddJob(kJob, v1::QuantizationJob::RUNNING);
  server_.state().hang_watch = true;
  for (int presses : {1, 2}) {
    SCOPED_TRACE(presses);
    InterruptListener interrupts;
    const size_t watches = server_.state().watched_after.size();
    std::thread user([&] {
      // Only once the watch is there does Ctrl-C belong to it.
      while (true) {
        std::lock_guard<std::mutex> lock(server_.state().mutex);
        if (server_.state().watched_after.size() > watches) break;
      }
      for (int i = 0; i < presses; ++i) interrupts.Interrupt();
    });
    EXPECT_EQ(Run({"watch", "j1"}, &interrupts), ExitStatus::kInterrupted);
    user.join();
    EXPECT_THAT(err_.str(), HasSubstr("Watch it again with `ptq watch j1`"));
    EXPECT_EQ(server_.state().cancelled.size(), presses == 2 ? 1u : 0u);
  }
}

TEST_F(CommandsTest, StatusIsZeroForAnyKnownJobAndTwoForAnUnknownOne) {
  server_.AddJob(kJob, v1::QuantizationJob::FAILED);
  EXPECT_EQ(Run({"status", "j1"}), ExitStatus::kDone);
  EXPECT_THAT(out_.str(), HasSubstr("FAILED"));
  EXPECT_EQ(Run({"status", "j1", "--json"}), ExitStatus::kDone);
  EXPECT_EQ((*ParseJson(out_.str()))["state"], "FAILED");
  EXPECT_EQ(Run({"status", "j2"}), ExitStatus::kRefused);
}

TEST_F(CommandsTest, ListJsonIsOneArray) {
  EXPECT_EQ(Run({"list", "--json"}), ExitStatus::kDone);
  EXPECT_EQ(*ParseJson(out_.str()), Json::array());
  server_.AddJob(kJob, v1::QuantizationJob::QUEUED);
  EXPECT_EQ(Run({"list", "--json"}), ExitStatus::kDone);
  EXPECT_EQ((*ParseJson(out_.str()))[0]["name"], kJob);
  EXPECT_EQ(Run({"list", "--quiet"}), ExitStatus::kDone);
  EXPECT_EQ(out_.str(), std::string(kJob) + "\n");
}

TEST_F(CommandsTest, ReportJsonIsTheFileToTheByte) {
  server_.AddJob(kJob, v1::QuantizationJob::SUCCEEDED);
  server_.state().report_json = "{ \"size\" : { \"bits_per_weight\":4.1250 } }";
  server_.AddArtifact("report.html", "<html>");
  EXPECT_EQ(Run({"report", "j1", "--json", "--html", folder_.Path("r.html")}), ExitStatus::kDone);
  EXPECT_EQ(out_.str(), server_.state().report_json);
  EXPECT_EQ(*ReadFile(folder_.Path("r.html")), "<html>");
}

TEST_F(CommandsTest, CancelJsonPrintsTheJob) {
  server_.AddJob(kJob, v1::QuantizationJob::CANCELLING);
  EXPECT_EQ(Run({"cancel", "j1", "--json"}), ExitStatus::kDone);
  EXPECT_EQ((*ParseJson(out_.str()))["state"], "CANCELLING");
  EXPECT_THAT(server_.state().cancelled, ElementsAre(kJob));
}

TEST_F(CommandsTest, CapabilitiesJson) {
  EXPECT_EQ(Run({"capabilities", "--json"}), ExitStatus::kDone);
  EXPECT_EQ((*ParseJson(out_.str()))["max_chunk_bytes"], 2 << 20);
}

TEST_F(CommandsTest, TheServerFlagMayStandAfterTheCommand) {
  CLI::App root;
  CommandLine line;
  BuildCommandLine(root, line);
  std::vector<std::string> arguments = {"h:1", "--server", "j1", "status"};
  root.parse(arguments);
  EXPECT_EQ(line.server, "h:1");
}

}  // namespace
}  // namespace ptq
