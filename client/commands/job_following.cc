#include "client/commands/job_following.h"

#include "client/job_watcher.h"
#include "client/message_json.h"
#include "client/progress_display.h"
#include "client/report_text.h"
#include "client/resource_names.h"
#include "client/rpc_status.h"
#include "client/text_format.h"
#include "common/status_util.h"

namespace ptq {
namespace {

// How long a second Ctrl-C is waited for before the command ends.
constexpr absl::Duration kSecondInterrupt = absl::Seconds(3);

class JsonLines : public JobObserver {
 public:
  explicit JsonLines(std::ostream& out) : out_(out) {}
  void OnEvent(const v1::JobEvent& event) override {
    out_ << DumpJson(EventToJson(event)) << std::endl;
  }
  void OnDisconnected() override {}
  void OnReconnected() override {}

 private:
  std::ostream& out_;
};

absl::Status Detach(Session& session, const std::string& name) {
  std::ostream& err = session.console().err;
  const std::string job = ShortName(name);
  err << "Detached; the job goes on. Watch it again with `ptq watch " << job
      << "`; Ctrl-C again cancels it." << std::endl;
  if (!session.interrupts().WaitForCount(2, kSecondInterrupt)) return session.canceller().Check();
  session.canceller().Reset();
  const absl::Status status = session.client().CancelJob(name);
  if (status.ok()) {
    err << "Cancelling " << job << "; `ptq resume " << job << "` would continue it." << std::endl;
  } else {
    err << "ptq: " << ErrorSentence(status) << std::endl;
  }
  return absl::CancelledError("interrupted");
}

}  // namespace

absl::StatusOr<v1::QuantizationJob> FollowJob(Session& session, const std::string& name,
                                              const FollowOptions& options) {
  absl::StatusOr<v1::QuantizationJob> job;
  if (options.json) {
    JsonLines lines(*options.out);
    job = WatchJob(session.client(), name, lines);
  } else {
    JobDisplay display(*options.out, options.terminal);
    job = WatchJob(session.client(), name, display);
  }
  if (session.canceller().IsCancelled()) return Detach(session, name);
  return job;
}

ExitStatus ReportEnd(Session& session, const v1::QuantizationJob& job) {
  if (job.state() == v1::QuantizationJob::SUCCEEDED) return ExitStatus::kDone;
  std::ostream& err = session.console().err;
  const std::string name = ShortName(job.name());
  if (job.state() == v1::QuantizationJob::FAILED) {
    err << "ptq: the job failed: " << WithFlagNames(job.error().message()) << " ("
        << StatusCodeName(static_cast<absl::StatusCode>(job.error().code())) << "); `ptq logs "
        << name << "` shows what led to it" << std::endl;
  } else if (job.state() == v1::QuantizationJob::CANCELLED) {
    err << "ptq: the job was cancelled; `ptq resume " << name << "` continues it" << std::endl;
  } else {
    err << "ptq: the job ended as " << v1::QuantizationJob::State_Name(job.state())
        << "; submit it again" << std::endl;
  }
  return ExitStatus::kJobFailed;
}

std::string SuccessText(Session& session, const v1::QuantizationJob& job) {
  std::string text = "Succeeded";
  if (job.reused()) {
    text += ": equal work had been done before, its result was taken";
  } else if (job.has_start_time() && job.has_end_time()) {
    text += " in " + FormatSeconds(ToTime(job.end_time()) - ToTime(job.start_time()));
  }
  text += ".\n";
  // The result counts; a report that cannot be had now can be asked for later.
  const auto report = session.client().GetReport(job.name());
  if (report.ok()) {
    const auto json = ParseJson(report->report_json());
    if (json.ok()) text += ReportSummary(*json);
  }
  return text;
}

}  // namespace ptq
