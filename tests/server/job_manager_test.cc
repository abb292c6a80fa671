// The whole control plane below the RPC layer, with workers whose every step the test decides.
#include "server/jobs/job_manager.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/file.h"
#include "common/sha256.h"
#include "server/jobs/job_state.h"
#include "server/jobs/job_submission.h"
#include "server/store/sqlite_job_store.h"
#include "tests/client/scratch_folder.h"
#include "tests/server/fake_launcher.h"
#include "tests/server/tiny_model.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::ElementsAre;
using testing::FakeWorker;
using ::testing::HasSubstr;
using testing::IsOk;
using ::testing::SizeIs;
using testing::StatusIs;
using Job = v1::QuantizationJob;

constexpr char kTenant[] = "default";

class JobManagerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    testing::WriteTinyModel(folder_.Path("models/tiny"));
    StartServer();
  }
  void TearDown() override { StopServer(); }

  // What a ptqd process is made of; the data folder and the launcher outlive it.
  void StartServer(int max_jobs = 1) {
    auto store = SqliteJobStore::Open(folder_.Path("jobs.sqlite3"));
    ASSERT_THAT(store, IsOk());
    store_ = *std::move(store);
    blobs_ = *BlobStore::Open(folder_.path(), *store_);
    sources_ =
        std::make_unique<InputSources>(*blobs_, *ModelRoots::Create({folder_.Path("models")}));
    inputs_ = std::make_unique<InputRegistry>(folder_.Path("tmp"), *store_, *sources_);
    ASSERT_THAT(inputs_->Start(), IsOk());
    hub_ = std::make_unique<JobEventHub>();
    ledger_ = std::make_unique<JobLedger>(*store_, *hub_);
    JobRunContext context{folder_.path(), *ledger_, *blobs_, *inputs_, launcher_};
    context.stop_grace = absl::Seconds(2);
    context.progress_interval = absl::ZeroDuration();
    manager_ = std::make_unique<JobManager>(JobManagerOptions{.max_concurrent_jobs = max_jobs},
                                            std::move(context));
    ASSERT_THAT(manager_->Start(), IsOk());
  }
  void StopServer() {
    if (manager_ != nullptr) manager_->Stop();
    manager_.reset();
    ledger_.reset();
    hub_.reset();
    inputs_.reset();
    sources_.reset();
    blobs_.reset();
    store_.reset();
  }

  std::string CreateModel() {
    v1::Source source;
    source.set_server_path(folder_.Path("models/tiny"));
    const auto model = inputs_->CreateModel(kTenant, source, false, std::nullopt);
    EXPECT_THAT(model, IsOk());
    return model.ok() ? model->name() : "";
  }
  v1::CreateQuantizationJobRequest Request() {
    v1::CreateQuantizationJobRequest request;
    request.mutable_spec()->set_model(CreateModel());
    request.mutable_spec()->mutable_rtn();
    request.mutable_spec()->mutable_scheme()->set_group_size(16);
    request.mutable_spec()->set_cache_policy(v1::SKIP_LOOKUP);
    return request;
  }
  JobRecord Submit(const v1::CreateQuantizationJobRequest& request) {
    auto record = MakeJobRecord(kTenant, request, *inputs_);
    EXPECT_THAT(record, IsOk());
    auto submitted = manager_->Submit(*std::move(record), std::nullopt);
    EXPECT_THAT(submitted, IsOk());
    return *std::move(submitted);
  }
  std::string SubmitId() { return Submit(Request()).id; }

  Job Get(const std::string& id) {
    const auto record = ledger_->Get(kTenant, id);
    EXPECT_THAT(record, IsOk());
    return record.ok() ? record->job : Job();
  }
  // The job once it is in `state`; a test that waits in vain fails with the state it is in.
  Job Await(const std::string& id, JobState state) {
    Job job;
    for (int i = 0; i < 3000; ++i) {
      job = Get(id);
      if (job.state() == state) return job;
      absl::SleepFor(absl::Milliseconds(10));
    }
    ADD_FAILURE() << "the job is " << Job::State_Name(job.state()) << ", not "
                  << Job::State_Name(state) << ": " << job.error().message();
    return job;
  }
  std::vector<std::string> States(const std::string& id) {
    std::vector<std::string> states;
    const auto events = store_->ReadEvents(kTenant, id, 0, 1000);
    EXPECT_THAT(events, IsOk());
    for (const v1::JobEvent& event : *events) {
      if (!event.has_snapshot()) continue;
      const std::string state = Job::State_Name(event.snapshot().state());
      if (states.empty() || states.back() != state) states.push_back(state);
    }
    return states;
  }

  testing::ScratchFolder folder_;
  testing::FakeLauncher launcher_;
  std::unique_ptr<SqliteJobStore> store_;
  std::unique_ptr<BlobStore> blobs_;
  std::unique_ptr<InputSources> sources_;
  std::unique_ptr<InputRegistry> inputs_;
  std::unique_ptr<JobEventHub> hub_;
  std::unique_ptr<JobLedger> ledger_;
  std::unique_ptr<JobManager> manager_;
};

TEST_F(JobManagerTest, AJobRunsAndItsOutputBecomesBlobs) {
  const std::string id = SubmitId();
  auto worker = launcher_.AwaitWorker(1);
  ASSERT_NE(worker, nullptr);
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string spec, ReadFile(worker->command().spec_path));
  EXPECT_THAT(spec, HasSubstr("/inputs/model"));
  worker->SayStarted(2);
  worker->SayBlockDone(0);
  worker->SayBlockDone(1);
  // The worker's own state in the folder is no artifact.
  WriteFileAtomically(worker->command().output_dir + "/.state", "x").IgnoreError();
  worker->Succeed();
  const Job job = Await(id, Job::SUCCEEDED);
  EXPECT_EQ(job.progress().blocks_done(), 2);
  EXPECT_EQ(job.result_digest().hash(), std::string(64, 'd'));
  EXPECT_EQ(job.result_digest().size_bytes(), 7);
  EXPECT_TRUE(job.has_end_time());
  PTQ_ASSERT_OK_AND_ASSIGN(const auto files, store_->ListArtifacts(kTenant, id, "", 10));
  ASSERT_THAT(files, SizeIs(2));
  EXPECT_EQ(files[0].path(), "model.safetensors");
  EXPECT_EQ(files[0].digest().hash(), Sha256Hex("weights"));
  EXPECT_THAT(blobs_->OpenBlob(kTenant, files[0].digest()), IsOk());
  EXPECT_THAT(States(id), ElementsAre("QUEUED", "PENDING", "RUNNING", "SUCCEEDED"));
}

TEST_F(JobManagerTest, EventsAreNumberedWithoutGaps) {
  const std::string id = SubmitId();
  auto worker = launcher_.AwaitWorker(1);
  worker->SayStarted(2);
  worker->SayLine("this is no event");
  worker->SayBlockDone(0);
  worker->SayBlockDone(1);
  worker->Succeed();
  Await(id, Job::SUCCEEDED);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto events, store_->ReadEvents(kTenant, id, 0, 100));
  PTQ_ASSERT_OK_AND_ASSIGN(const JobRecord record, ledger_->Get(kTenant, id));
  ASSERT_EQ(static_cast<int64_t>(events.size()), record.last_sequence);
  std::vector<int> blocks;
  for (size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(events[i].sequence(), static_cast<int64_t>(i) + 1);
    if (events[i].has_block()) blocks.push_back(events[i].block().block());
  }
  EXPECT_THAT(blocks, ElementsAre(0, 1));
}

TEST_F(JobManagerTest, AWorkersFailureIsTheJobs) {
  const std::string id = SubmitId();
  launcher_.AwaitWorker(1)->Fail(absl::StatusCode::kInvalidArgument, "NaN in model.norm.weight");
  const Job job = Await(id, Job::FAILED);
  EXPECT_EQ(job.error().code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(job.error().message(), "NaN in model.norm.weight");
}

TEST_F(JobManagerTest, ALostWorkerIsReplacedInTheSameFolderUntilOneTooMany) {
  const std::string id = SubmitId();
  for (size_t attempt = 1; attempt <= 3; ++attempt) {
    auto worker = launcher_.AwaitWorker(attempt);
    ASSERT_NE(worker, nullptr);
    EXPECT_EQ(worker->command().output_dir, folder_.Path("jobs/" + id + "/output"));
    worker->SayStarted(2, static_cast<int64_t>(attempt) - 1);
    worker->DieOf(SIGKILL);
  }
  const Job job = Await(id, Job::FAILED);
  EXPECT_EQ(job.error().code(), static_cast<int>(absl::StatusCode::kUnavailable));
  EXPECT_THAT(job.error().message(), HasSubstr("SIGKILL"));
  EXPECT_THAT(job.error().message(), HasSubstr("attempt 3 of 3"));
  EXPECT_EQ(job.attempt(), 3);
  EXPECT_EQ(launcher_.launched(), 3u);
  EXPECT_TRUE(IsDirectory(folder_.Path("jobs/" + id + "/output")));
}

TEST_F(JobManagerTest, MaxAttemptsIsTheSpecs) {
  auto request = Request();
  request.mutable_spec()->mutable_failure_policy()->set_max_attempts(1);
  const std::string id = Submit(request).id;
  launcher_.AwaitWorker(1)->DieOf(SIGSEGV);
  EXPECT_THAT(Await(id, Job::FAILED).error().message(), HasSubstr("SIGSEGV"));
}

TEST_F(JobManagerTest, AWorkerThatCannotStartFailsTheJob) {
  launcher_.set_launch_error(absl::InternalError("cannot start it"));
  EXPECT_THAT(Await(SubmitId(), Job::FAILED).error().message(), HasSubstr("cannot start it"));
}

TEST_F(JobManagerTest, SuccessWithoutAReportIsAFailure) {
  const std::string id = SubmitId();
  auto worker = launcher_.AwaitWorker(1);
  JobEvent event;
  event.type = JobEvent::Type::kSucceeded;
  event.result_digest = std::string(64, 'd');
  worker->Say(event);
  worker->Exit(0);
  EXPECT_THAT(Await(id, Job::FAILED).error().message(), HasSubstr("no report.json"));
}

TEST_F(JobManagerTest, AQueuedJobIsCancelledAtOnce) {
  SubmitId();
  ASSERT_NE(launcher_.AwaitWorker(1), nullptr);
  const std::string second = SubmitId();
  ASSERT_THAT(manager_->Cancel(kTenant, second, ""), IsOk());
  EXPECT_EQ(Get(second).state(), Job::CANCELLED);
  EXPECT_THAT(States(second), ElementsAre("QUEUED", "CANCELLING", "CANCELLED"));
  EXPECT_THAT(manager_->Cancel(kTenant, second, ""),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("already ended")));
}

TEST_F(JobManagerTest, ARunningJobIsStoppedAndCancelled) {
  const std::string id = SubmitId();
  auto worker = launcher_.AwaitWorker(1);
  worker->SayStarted(2);
  Await(id, Job::RUNNING);
  const absl::Time start = absl::Now();
  ASSERT_THAT(manager_->Cancel(kTenant, id, ""), IsOk());
  Await(id, Job::CANCELLED);
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_TRUE(worker->AwaitStopRequest());
  EXPECT_FALSE(worker->killed());
}

TEST_F(JobManagerTest, AWorkerThatDoesNotObeyIsKilled) {
  const std::string id = SubmitId();
  auto worker = launcher_.AwaitWorker(1);
  worker->set_stubborn();
  Await(id, Job::RUNNING);
  ASSERT_THAT(manager_->Cancel(kTenant, id, ""), IsOk());
  Await(id, Job::CANCELLED);
  EXPECT_TRUE(worker->killed());
}

TEST_F(JobManagerTest, AJobThatFinishesWhileCancellingKeepsItsResult) {
  const std::string id = SubmitId();
  auto worker = launcher_.AwaitWorker(1);
  worker->set_stubborn();
  Await(id, Job::RUNNING);
  ASSERT_THAT(manager_->Cancel(kTenant, id, ""), IsOk());
  EXPECT_TRUE(worker->AwaitStopRequest());
  worker->Succeed();
  Await(id, Job::SUCCEEDED);
  EXPECT_THAT(States(id), ElementsAre("QUEUED", "PENDING", "RUNNING", "CANCELLING", "SUCCEEDED"));
}

TEST_F(JobManagerTest, AStaleEtagIsAborted) {
  const std::string id = SubmitId();
  const std::string etag = Get(id).etag();
  Await(id, Job::RUNNING);
  EXPECT_THAT(manager_->Cancel(kTenant, id, etag),
              StatusIs(absl::StatusCode::kAborted, HasSubstr("changed")));
  EXPECT_THAT(manager_->Cancel(kTenant, id, Get(id).etag()), IsOk());
}

TEST_F(JobManagerTest, ACancelledJobResumesInItsFolder) {
  const std::string id = SubmitId();
  auto first = launcher_.AwaitWorker(1);
  Await(id, Job::RUNNING);
  WriteFileAtomically(first->command().output_dir + "/block-0", "x").IgnoreError();
  ASSERT_THAT(manager_->Cancel(kTenant, id, ""), IsOk());
  Await(id, Job::CANCELLED);
  PTQ_ASSERT_OK_AND_ASSIGN(const JobRecord resumed, manager_->Resume(kTenant, id, ""));
  EXPECT_EQ(resumed.job.state(), Job::QUEUED);
  EXPECT_EQ(resumed.job.attempt(), 2);
  auto second = launcher_.AwaitWorker(2);
  ASSERT_NE(second, nullptr);
  EXPECT_TRUE(PathExists(second->command().output_dir + "/block-0"));
  second->Succeed();
  Await(id, Job::SUCCEEDED);
  EXPECT_THAT(manager_->Resume(kTenant, id, ""),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("SUCCEEDED")));
}

TEST_F(JobManagerTest, StoppingTheServerQueuesTheJobAndTheNextServerContinues) {
  const std::string id = SubmitId();
  auto first = launcher_.AwaitWorker(1);
  Await(id, Job::RUNNING);
  const int64_t before = ledger_->Get(kTenant, id)->last_sequence;
  StopServer();
  EXPECT_TRUE(first->AwaitStopRequest());
  StartServer();
  auto second = launcher_.AwaitWorker(2);
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(second->command().output_dir, first->command().output_dir);
  second->Succeed();
  const Job job = Await(id, Job::SUCCEEDED);
  EXPECT_EQ(job.attempt(), 1) << "the server's stop is not the worker's fault";
  EXPECT_GT(ledger_->Get(kTenant, id)->last_sequence, before);
  EXPECT_THAT(States(id), ElementsAre("QUEUED", "PENDING", "RUNNING", "QUEUED", "PENDING",
                                      "RUNNING", "SUCCEEDED"));
}

// The rows as a killed server leaves them, then a new server.
class RecoveryTest : public JobManagerTest {
 protected:
  std::string LeaveBehind(JobState state) {
    StopServer();
    auto store = *SqliteJobStore::Open(folder_.Path("jobs.sqlite3"));
    JobRecord record;
    record.tenant = kTenant;
    record.id = "left";
    record.job.set_name("tenants/default/quantizationJobs/left");
    record.job.set_state(state);
    record.worker_handle = "fake:7";
    record.last_sequence = 4;
    EXPECT_THAT(store->InsertJob(record, {}, {}, std::nullopt), IsOk());
    store.reset();
    StartServer();
    return record.id;
  }
};

TEST_F(RecoveryTest, ARunningJobsOrphanIsEndedFirst) {
  LeaveBehind(Job::RUNNING);
  EXPECT_THAT(launcher_.orphans(), ElementsAre("fake:7"));
  // This one names no model, so its new attempt fails; that it had one is the point.
  Await("left", Job::FAILED);
  EXPECT_THAT(States("left"), ElementsAre("QUEUED", "PENDING", "FAILED"));
}

TEST_F(RecoveryTest, ACancellingJobIsCancelled) {
  LeaveBehind(Job::CANCELLING);
  EXPECT_EQ(Get("left").state(), Job::CANCELLED);
  EXPECT_THAT(launcher_.orphans(), ElementsAre("fake:7"));
}

TEST_F(JobManagerTest, FoldersWithoutAJobGoAtTheStart) {
  StopServer();
  folder_.Write("jobs/unknown/output/file", "x");
  StartServer();
  EXPECT_FALSE(PathExists(folder_.Path("jobs/unknown")));
}

TEST_F(JobManagerTest, EqualWorkIsReused) {
  auto request = Request();
  request.mutable_spec()->set_cache_policy(v1::REUSE);
  const JobRecord first = Submit(request);
  launcher_.AwaitWorker(1)->Succeed();
  const Job done = Await(first.id, Job::SUCCEEDED);
  const JobRecord second = Submit(request);
  EXPECT_NE(second.id, first.id);
  EXPECT_EQ(second.job.state(), Job::SUCCEEDED);
  EXPECT_TRUE(second.job.reused());
  EXPECT_EQ(second.job.result_digest().hash(), done.result_digest().hash());
  EXPECT_EQ(launcher_.launched(), 1u);
  // The first job's end does not take the shared bytes away.
  ASSERT_THAT(manager_->Delete(kTenant, first.id), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(const auto files, store_->ListArtifacts(kTenant, second.id, "", 10));
  ASSERT_THAT(files, SizeIs(2));
  EXPECT_THAT(blobs_->OpenBlob(kTenant, files[0].digest()), IsOk());
  ASSERT_THAT(manager_->Delete(kTenant, second.id), IsOk());
  EXPECT_FALSE(PathExists(blobs_->PathOf(files[0].digest().hash())));
  // Nothing to reuse any more: it has to be done again.
  EXPECT_FALSE(Submit(request).job.reused());
}

TEST_F(JobManagerTest, OtherWorkIsNotReused) {
  auto request = Request();
  request.mutable_spec()->set_cache_policy(v1::REUSE);
  const JobRecord first = Submit(request);
  launcher_.AwaitWorker(1)->Succeed();
  Await(first.id, Job::SUCCEEDED);
  auto other = request;
  other.mutable_spec()->set_seed(7);
  EXPECT_FALSE(Submit(other).job.reused());
  auto again = request;
  again.mutable_spec()->set_cache_policy(v1::SKIP_LOOKUP);
  EXPECT_FALSE(Submit(again).job.reused());
  // Labels and priority are not part of the work.
  auto labelled = request;
  (*labelled.mutable_labels())["a"] = "b";
  labelled.mutable_spec()->set_priority(3);
  EXPECT_TRUE(Submit(labelled).job.reused());
}

TEST_F(JobManagerTest, ARecipesIterationsAreTheSameWorkNamedOrNot) {
  folder_.Write("models/c.txt", "text");
  v1::Source source;
  source.set_server_path(folder_.Path("models/c.txt"));
  PTQ_ASSERT_OK_AND_ASSIGN(const v1::Dataset dataset,
                           inputs_->CreateDataset(kTenant, source, false, std::nullopt));
  const auto digest = [&](const std::string& tuning) {
    auto request = Request();
    request.mutable_spec()->set_calibration_dataset(dataset.name());
    EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(
        tuning, request.mutable_spec()->mutable_auto_round()));
    const auto record = MakeJobRecord(kTenant, request, *inputs_);
    EXPECT_THAT(record, IsOk());
    return record.ok() ? record->job.action_digest().hash() : "";
  };
  EXPECT_EQ(digest(""), digest("recipe: 'default' iterations: 60 fisher_tokens: -1 "
                               "tuning_precision: 'auto'"));
  EXPECT_EQ(digest("recipe: 'paper'"), digest("recipe: 'paper' iterations: 200"));
  EXPECT_NE(digest(""), digest("iterations: 61"));
  EXPECT_NE(digest("recipe: 'paper' iterations: 60"), digest("iterations: 60"));
  EXPECT_NE(digest(""), digest("fisher_tokens: 0"));
  EXPECT_NE(digest(""), digest("tuning_precision: 'bf16'"));
}

TEST_F(JobManagerTest, ARewrittenServerPathIsOtherWorkAndFailsTheOldJob) {
  auto first_request = Request();
  auto blocker = Submit(first_request);
  auto worker = launcher_.AwaitWorker(1);
  auto waiting = Submit(first_request);
  auto files = testing::TinyModelFiles();
  files["model.safetensors"].back() = 1;
  folder_.Write("models/tiny/model.safetensors", files["model.safetensors"]);
  EXPECT_NE(CreateModel(), first_request.spec().model());
  worker->Succeed();
  const Job failed = Await(waiting.id, Job::FAILED);
  EXPECT_EQ(failed.error().code(), static_cast<int>(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(failed.error().message(), HasSubstr("changed on the server's disk"));
  Await(blocker.id, Job::SUCCEEDED);
}

TEST_F(JobManagerTest, UnfinishedJobsCannotBeDeleted) {
  const std::string id = SubmitId();
  Await(id, Job::RUNNING);
  EXPECT_THAT(manager_->Delete(kTenant, id),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("RUNNING")));
  ASSERT_THAT(manager_->Cancel(kTenant, id, ""), IsOk());
  Await(id, Job::CANCELLED);
  ASSERT_THAT(manager_->Delete(kTenant, id), IsOk());
  EXPECT_THAT(ledger_->Get(kTenant, id),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("quantization job")));
  EXPECT_FALSE(PathExists(folder_.Path("jobs/" + id)));
}

TEST_F(JobManagerTest, AJobThatRunsTooLongFails) {
  auto request = Request();
  request.mutable_spec()->mutable_max_run_duration()->set_seconds(1);
  const std::string id = Submit(request).id;
  const Job job = Await(id, Job::FAILED);
  EXPECT_EQ(job.error().code(), static_cast<int>(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(JobManagerTest, AnExpiredJobLosesItsBytesAndKeepsItsRow) {
  auto request = Request();
  request.mutable_spec()->mutable_ttl_after_finished()->set_seconds(1);
  const std::string id = Submit(request).id;
  launcher_.AwaitWorker(1)->Succeed("short-lived");
  EXPECT_TRUE(Await(id, Job::SUCCEEDED).has_expire_time());
  Await(id, Job::EXPIRED);
  for (int i = 0; i < 500 && PathExists(blobs_->PathOf(Sha256Hex("short-lived"))); ++i) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_FALSE(PathExists(blobs_->PathOf(Sha256Hex("short-lived"))));
}

TEST_F(JobManagerTest, AsManyJobsRunAsAllowed) {
  StopServer();
  StartServer(/*max_jobs=*/2);
  for (int i = 0; i < 3; ++i) SubmitId();
  ASSERT_NE(launcher_.AwaitWorker(2), nullptr);
  absl::SleepFor(absl::Milliseconds(200));
  EXPECT_EQ(launcher_.launched(), 2u);
  launcher_.AwaitWorker(1)->Succeed();
  EXPECT_NE(launcher_.AwaitWorker(3), nullptr);
}

TEST_F(JobManagerTest, WarningsOfTheWorkerAreTheJobs) {
  const std::string id = SubmitId();
  auto worker = launcher_.AwaitWorker(1);
  for (const char* severity : {"warning", "info", "warning"}) {
    JobEvent event;
    event.type = JobEvent::Type::kLog;
    event.severity = severity;
    event.message = absl::StrCat("said as ", severity);
    worker->Say(event);
  }
  worker->Succeed();
  const Job job = Await(id, Job::SUCCEEDED);
  EXPECT_THAT(job.warnings(), ElementsAre("said as warning"));
}

}  // namespace
}  // namespace ptq
