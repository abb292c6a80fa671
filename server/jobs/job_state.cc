#include "server/jobs/job_state.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "server/errors/status_details.h"

namespace ptq {
namespace {

using Job = v1::QuantizationJob;

constexpr std::pair<JobState, JobState> kTransitions[] = {
    {Job::QUEUED, Job::PENDING},       {Job::QUEUED, Job::CANCELLING},
    {Job::PENDING, Job::RUNNING},      {Job::PENDING, Job::QUEUED},
    {Job::PENDING, Job::FAILED},       {Job::PENDING, Job::CANCELLING},
    {Job::RUNNING, Job::SUCCEEDED},    {Job::RUNNING, Job::FAILED},
    {Job::RUNNING, Job::QUEUED},       {Job::RUNNING, Job::PAUSED},
    {Job::RUNNING, Job::CANCELLING},   {Job::CANCELLING, Job::CANCELLED},
    {Job::CANCELLING, Job::SUCCEEDED}, {Job::CANCELLING, Job::FAILED},
    {Job::PAUSED, Job::QUEUED},        {Job::PAUSED, Job::CANCELLING},
    {Job::FAILED, Job::QUEUED},        {Job::FAILED, Job::EXPIRED},
    {Job::CANCELLED, Job::QUEUED},     {Job::CANCELLED, Job::EXPIRED},
    {Job::SUCCEEDED, Job::EXPIRED},
};

}  // namespace

bool IsLegalTransition(JobState from, JobState to) {
  for (const auto& [legal_from, legal_to] : kTransitions) {
    if (from == legal_from && to == legal_to) return true;
  }
  return false;
}

bool IsEnded(JobState state) {
  return state == Job::SUCCEEDED || state == Job::FAILED || state == Job::CANCELLED ||
         state == Job::EXPIRED;
}

absl::Status SetJobState(v1::QuantizationJob& job, JobState to) {
  if (!IsLegalTransition(job.state(), to)) {
    return WrongState(job.name(), "ILLEGAL_TRANSITION",
                      absl::StrFormat("the job is %s and cannot become %s",
                                      Job::State_Name(job.state()), Job::State_Name(to)));
  }
  job.set_state(to);
  return absl::OkStatus();
}

}  // namespace ptq
