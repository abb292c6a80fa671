// Watching across broken connections; the client's retries and paging, on mocks and the fake
// server.
#include "client/job_watcher.h"

#include <gmock/gmock.h>
#include <grpcpp/test/mock_stream.h>
#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "ptq/v1/quantization_service_mock.grpc.pb.h"
#include "tests/client/fake_server.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::ptq::testing::FakeServer;
using ::ptq::testing::IsOk;
using ::ptq::testing::kJob;
using ::ptq::testing::StatusIs;
using ::testing::_;
using ::testing::DoAll;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Return;
using ::testing::SetArgPointee;
using ::testing::SizeIs;

class Recorder : public JobObserver {
 public:
  void OnEvent(const v1::JobEvent& event) override { sequences.push_back(event.sequence()); }
  void OnDisconnected() override { ++disconnected; }
  void OnReconnected() override { ++reconnected; }

  std::vector<int64_t> sequences;
  int disconnected = 0;
  int reconnected = 0;
};

class JobWatcherTest : public ::testing::Test {
 protected:
  // Sequences 1 to 5: running, two blocks, a snapshot, the end.
  void MakeFinishedJob(v1::QuantizationJob::State end) {
    v1::QuantizationJob job = server_.AddJob(kJob, v1::QuantizationJob::RUNNING);
    server_.AddBlock(0, 2, 1);
    server_.AddBlock(1, 2, 1);
    server_.AddSnapshot(job);
    job.set_state(end);
    server_.AddSnapshot(job);
  }

  FakeServer server_;
  Recorder recorder_;
};

TEST_F(JobWatcherTest, SeesEveryEventOnceAndReturnsTheEnd) {
  MakeFinishedJob(v1::QuantizationJob::FAILED);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto job, WatchJob(server_.client(), kJob, recorder_));
  EXPECT_EQ(job.state(), v1::QuantizationJob::FAILED);
  EXPECT_THAT(recorder_.sequences, ElementsAre(1, 2, 3, 4, 5));
  EXPECT_EQ(recorder_.disconnected, 0);
}

TEST_F(JobWatcherTest, AReconnectionContinuesAfterTheLastEvent) {
  MakeFinishedJob(v1::QuantizationJob::SUCCEEDED);
  server_.state().break_watch_after = 3;
  PTQ_ASSERT_OK_AND_ASSIGN(const auto job, WatchJob(server_.client(), kJob, recorder_));
  EXPECT_EQ(job.state(), v1::QuantizationJob::SUCCEEDED);
  EXPECT_THAT(recorder_.sequences, ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(server_.state().watched_after, ElementsAre(0, 3));
  EXPECT_EQ(recorder_.disconnected, 1);
  EXPECT_EQ(recorder_.reconnected, 1);
}

TEST_F(JobWatcherTest, AStreamThatEndsEarlyIsTakenUpAgain) {
  server_.AddJob(kJob, v1::QuantizationJob::RUNNING);
  // The fake server closes the stream although the job runs; it ends while the watcher waits.
  struct EndAfterTwo : Recorder {
    explicit EndAfterTwo(FakeServer& fake) : server(fake) {}
    void OnEvent(const v1::JobEvent& event) override {
      Recorder::OnEvent(event);
      if (sequences.size() > 1) return;
      end = std::thread([this] {
        std::lock_guard<std::mutex> lock(server.state().mutex);
        v1::QuantizationJob job = server.state().jobs[kJob];
        job.set_state(v1::QuantizationJob::SUCCEEDED);
        server.AddSnapshot(job);
      });
    }
    FakeServer& server;
    std::thread end;
  } recorder(server_);
  const auto job = WatchJob(server_.client(), kJob, recorder);
  recorder.end.join();
  ASSERT_THAT(job, IsOk());
  EXPECT_EQ(job->state(), v1::QuantizationJob::SUCCEEDED);
}

TEST_F(JobWatcherTest, AnUnknownJobIsRefusedAtOnce) {
  EXPECT_THAT(WatchJob(server_.client(), "tenants/default/quantizationJobs/none", recorder_),
              StatusIs(absl::StatusCode::kNotFound, _));
  EXPECT_THAT(server_.state().watched_after, SizeIs(0));
}

TEST_F(JobWatcherTest, AnInterruptionEndsAWatchThatHangs) {
  server_.AddJob(kJob, v1::QuantizationJob::RUNNING);
  server_.state().hang_watch = true;
  struct Interrupter : Recorder {
    explicit Interrupter(CallCanceller& c) : canceller(c) {}
    void OnEvent(const v1::JobEvent&) override { canceller.Cancel(); }
    CallCanceller& canceller;
  } interrupter(server_.canceller());
  EXPECT_THAT(WatchJob(server_.client(), kJob, interrupter),
              StatusIs(absl::StatusCode::kCancelled, _));
}

// The server answers once and is then gone for good.
class MockedClientTest : public ::testing::Test {
 protected:
  MockedClientTest() {
    auto mock = std::make_unique<v1::MockQuantizationServiceStub>();
    jobs_ = mock.get();
    stubs_.jobs = std::move(mock);
    QuantizationClient::Options options;
    options.server = "test:1";
    options.retry = {absl::Milliseconds(1), absl::Milliseconds(2), absl::Milliseconds(50)};
    client_ = std::make_unique<QuantizationClient>(stubs_, canceller_, options);
  }

  ServiceStubs stubs_;
  v1::MockQuantizationServiceStub* jobs_;
  CallCanceller canceller_;
  std::unique_ptr<QuantizationClient> client_;
};

TEST_F(MockedClientTest, AServerThatNeverAnsweredIsReportedAtOnce) {
  EXPECT_CALL(*jobs_, GetQuantizationJob(_, _, _)).WillOnce(Return(testing::Unavailable()));
  EXPECT_THAT(client_->GetJob(kJob),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("test:1 cannot be reached")));
}

TEST_F(MockedClientTest, AServerThatAnsweredBeforeIsTriedAgain) {
  v1::QuantizationJob job;
  job.set_name(kJob);
  EXPECT_CALL(*jobs_, GetQuantizationJob(_, _, _))
      .WillOnce(DoAll(SetArgPointee<2>(job), Return(grpc::Status::OK)))
      .WillOnce(Return(testing::Unavailable()))
      .WillOnce(Return(testing::Unavailable()))
      .WillOnce(DoAll(SetArgPointee<2>(job), Return(grpc::Status::OK)));
  EXPECT_THAT(client_->GetJob(kJob), IsOk());
  EXPECT_THAT(client_->GetJob(kJob), IsOk());
}

TEST_F(MockedClientTest, OtherErrorsAreNeverTriedAgain) {
  EXPECT_CALL(*jobs_, DeleteQuantizationJob(_, _, _))
      .WillOnce(Return(grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "it runs")));
  EXPECT_THAT(client_->DeleteJob(kJob), StatusIs(absl::StatusCode::kFailedPrecondition, "it runs"));
}

TEST_F(MockedClientTest, AWatchGivesUpAfterItsPatience) {
  v1::QuantizationJob job;
  job.set_state(v1::QuantizationJob::RUNNING);
  EXPECT_CALL(*jobs_, GetQuantizationJob(_, _, _))
      .WillOnce(DoAll(SetArgPointee<2>(job), Return(grpc::Status::OK)));
  EXPECT_CALL(*jobs_, WatchQuantizationJobRaw(_, _)).WillRepeatedly([](auto*, const auto&) {
    auto* reader = new grpc::testing::MockClientReader<v1::JobEvent>();
    EXPECT_CALL(*reader, Read(_)).WillRepeatedly(Return(false));
    EXPECT_CALL(*reader, Finish()).WillOnce(Return(testing::Unavailable()));
    return reader;
  });
  Recorder recorder;
  EXPECT_THAT(WatchJob(*client_, kJob, recorder),
              StatusIs(absl::StatusCode::kUnavailable,
                       HasSubstr("could not be reached for 50ms; the job goes on there")));
  EXPECT_EQ(recorder.disconnected, 1);
}

TEST(ListTest, FollowsPagesUpToTheLimit) {
  FakeServer server;
  for (const char* id : {"a", "b", "c"}) {
    server.AddJob(std::string("tenants/default/quantizationJobs/") + id,
                  v1::QuantizationJob::QUEUED);
  }
  EXPECT_THAT(*server.client().ListJobs("tenants/default", "", 0), SizeIs(3));
  EXPECT_THAT(*server.client().ListJobs("tenants/default", "", 2), SizeIs(2));
}

}  // namespace
}  // namespace ptq
