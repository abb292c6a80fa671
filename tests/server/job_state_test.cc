// The transition table over all pairs of states, and what a worker's end means.
#include "server/jobs/job_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <set>
#include <string>
#include <utility>

#include "server/jobs/attempt_outcome.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;
using Job = v1::QuantizationJob;

// The same table, written down a second time.
const std::set<std::pair<std::string, std::string>> kLegal = {
    {"QUEUED", "PENDING"},       {"QUEUED", "CANCELLING"},  {"PENDING", "RUNNING"},
    {"PENDING", "QUEUED"},       {"PENDING", "FAILED"},     {"PENDING", "CANCELLING"},
    {"RUNNING", "SUCCEEDED"},    {"RUNNING", "FAILED"},     {"RUNNING", "QUEUED"},
    {"RUNNING", "PAUSED"},       {"RUNNING", "CANCELLING"}, {"CANCELLING", "CANCELLED"},
    {"CANCELLING", "SUCCEEDED"}, {"CANCELLING", "FAILED"},  {"PAUSED", "QUEUED"},
    {"PAUSED", "CANCELLING"},    {"FAILED", "QUEUED"},      {"FAILED", "EXPIRED"},
    {"CANCELLED", "QUEUED"},     {"CANCELLED", "EXPIRED"},  {"SUCCEEDED", "EXPIRED"},
};

TEST(JobStateTest, EveryPairIsLegalOrRefused) {
  for (int from = Job::State_MIN; from <= Job::State_MAX; ++from) {
    for (int to = Job::State_MIN; to <= Job::State_MAX; ++to) {
      const std::string from_name = Job::State_Name(static_cast<JobState>(from));
      const std::string to_name = Job::State_Name(static_cast<JobState>(to));
      SCOPED_TRACE(from_name + " -> " + to_name);
      Job job;
      job.set_state(static_cast<JobState>(from));
      const absl::Status status = SetJobState(job, static_cast<JobState>(to));
      if (kLegal.count({from_name, to_name}) != 0) {
        EXPECT_THAT(status, IsOk());
        EXPECT_EQ(job.state(), to);
      } else {
        EXPECT_THAT(status, StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr(to_name)));
        EXPECT_EQ(job.state(), from);
      }
    }
  }
}

TEST(JobStateTest, EndedStatesAreFour) {
  std::set<int> ended;
  for (int state = Job::State_MIN; state <= Job::State_MAX; ++state) {
    if (IsEnded(static_cast<JobState>(state))) ended.insert(state);
  }
  EXPECT_EQ(ended, (std::set<int>{Job::SUCCEEDED, Job::FAILED, Job::CANCELLED, Job::EXPIRED}));
}

AttemptEnd Ended(int exit_code, int signal, StopReason stop = StopReason::kNone) {
  AttemptEnd end;
  end.exit = {exit_code, signal};
  end.stop = stop;
  return end;
}

AttemptEnd Said(AttemptEnd end, JobEvent::Type type) {
  end.last_event = JobEvent();
  end.last_event->type = type;
  end.last_event->code = absl::StatusCode::kInvalidArgument;
  end.last_event->message = "NaN in model.norm.weight";
  return end;
}

TEST(AttemptOutcomeTest, AResultCountsEvenWhileCancelling) {
  EXPECT_EQ(DecideOutcome(Said(Ended(0, 0), JobEvent::Type::kSucceeded)).next, Job::SUCCEEDED);
  EXPECT_EQ(DecideOutcome(Said(Ended(0, 0, StopReason::kCancel), JobEvent::Type::kSucceeded)).next,
            Job::SUCCEEDED);
}

TEST(AttemptOutcomeTest, ASucceededEventFromADeadWorkerIsNoResult) {
  const auto outcome = DecideOutcome(Said(Ended(0, SIGKILL), JobEvent::Type::kSucceeded));
  EXPECT_EQ(outcome.next, Job::QUEUED);
  EXPECT_TRUE(outcome.worker_lost);
}

TEST(AttemptOutcomeTest, FailureCarriesTheWorkersStatus) {
  const auto outcome = DecideOutcome(Said(Ended(1, 0), JobEvent::Type::kFailed));
  EXPECT_EQ(outcome.next, Job::FAILED);
  EXPECT_THAT(outcome.error, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("NaN")));
}

TEST(AttemptOutcomeTest, AWorkerWhoseGpuFailedIsReplaced) {
  AttemptEnd end = Said(Ended(1, 0), JobEvent::Type::kFailed);
  end.last_event->code = absl::StatusCode::kUnavailable;
  end.last_event->message = "the GPU failed";
  const auto outcome = DecideOutcome(end);
  EXPECT_EQ(outcome.next, Job::QUEUED);
  EXPECT_TRUE(outcome.worker_lost);
  EXPECT_THAT(outcome.error, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("the GPU failed")));
  end.stop = StopReason::kServerStops;
  EXPECT_FALSE(DecideOutcome(end).worker_lost);
  end.stop = StopReason::kCancel;
  EXPECT_EQ(DecideOutcome(end).next, Job::CANCELLED);
}

TEST(AttemptOutcomeTest, StopsByReason) {
  EXPECT_EQ(DecideOutcome(Ended(143, 0, StopReason::kCancel)).next, Job::CANCELLED);
  EXPECT_EQ(DecideOutcome(Ended(0, SIGKILL, StopReason::kCancel)).next, Job::CANCELLED);
  const auto drained = DecideOutcome(Ended(143, 0, StopReason::kServerStops));
  EXPECT_EQ(drained.next, Job::QUEUED);
  EXPECT_FALSE(drained.worker_lost);
  EXPECT_THAT(DecideOutcome(Ended(143, 0, StopReason::kDeadline)).error,
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("max_run_duration")));
}

TEST(AttemptOutcomeTest, ALostWorkerNamesTheSignal) {
  const auto killed = DecideOutcome(Ended(0, SIGKILL));
  EXPECT_EQ(killed.next, Job::QUEUED);
  EXPECT_TRUE(killed.worker_lost);
  EXPECT_THAT(killed.error, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("SIGKILL")));
  EXPECT_THAT(DecideOutcome(Ended(0, SIGSEGV)).error,
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("SIGSEGV")));
  EXPECT_TRUE(DecideOutcome(Ended(143, 0)).worker_lost);
}

TEST(AttemptOutcomeTest, SilentExitsFailWithTheLogsLastLine) {
  AttemptEnd end = Ended(1, 0);
  end.last_log_line = "cannot open shared object";
  EXPECT_THAT(DecideOutcome(end).error,
              StatusIs(absl::StatusCode::kInternal, HasSubstr("cannot open shared object")));
  EXPECT_THAT(DecideOutcome(Ended(2, 0)).error,
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("status 2")));
  EXPECT_EQ(DecideOutcome(Ended(0, 0)).next, Job::FAILED);
}

}  // namespace
}  // namespace ptq
