#include "client/job_watcher.h"

#include <utility>

#include "client/rpc_status.h"
#include "common/status_macros.h"

namespace ptq {
namespace {

// Events of one job over any number of connections: each once, in order.
class EventFilter {
 public:
  explicit EventFilter(JobObserver& observer) : observer_(observer) {}

  void Handle(const v1::JobEvent& event) {
    const bool first = last_sequence_ == 0;
    if (event.has_heartbeat() || (!first && event.sequence() <= last_sequence_)) return;
    last_sequence_ = event.sequence();
    observer_.OnEvent(event);
  }

  int64_t last_sequence() const { return last_sequence_; }
  // The server no longer knows where this watcher is: it starts again with a snapshot.
  void ForgetSequence() { last_sequence_ = 0; }

 private:
  JobObserver& observer_;
  int64_t last_sequence_ = 0;
};

}  // namespace

bool HasEnded(v1::QuantizationJob::State state) {
  return state == v1::QuantizationJob::SUCCEEDED || state == v1::QuantizationJob::FAILED ||
         state == v1::QuantizationJob::CANCELLED || state == v1::QuantizationJob::EXPIRED;
}

absl::StatusOr<v1::QuantizationJob> WatchJob(QuantizationClient& client, const std::string& name,
                                             JobObserver& observer) {
  // A first look tells an unknown job and an unreachable server apart from a connection that
  // breaks.
  PTQ_RETURN_IF_ERROR(client.GetJob(name).status());
  EventFilter filter(observer);
  Backoff backoff(client.retry());
  bool disconnected = false;
  while (true) {
    grpc::ClientContext context;
    CallCanceller::Scope scope(client.canceller(), context);
    v1::WatchRequest request;
    request.set_name(name);
    request.set_after_sequence(filter.last_sequence());
    const auto reader = client.stubs().jobs->WatchQuantizationJob(&context, request);
    v1::JobEvent event;
    while (reader->Read(&event)) {
      if (std::exchange(disconnected, false)) observer.OnReconnected();
      backoff.Succeeded();
      filter.Handle(event);
    }
    absl::Status status = FromRpcStatus(reader->Finish(), client.server());
    PTQ_RETURN_IF_ERROR(client.canceller().Check());
    if (status.ok()) {
      PTQ_ASSIGN_OR_RETURN(auto job, client.GetJob(name));
      if (HasEnded(job.state())) return job;
      // The server closed a long-lived stream in an orderly way: go on at once, but never in a
      // circle without a pause.
    } else if (absl::IsOutOfRange(status)) {
      filter.ForgetSequence();
    } else if (!absl::IsUnavailable(status)) {
      return status;
    } else {
      if (!std::exchange(disconnected, true)) observer.OnDisconnected();
      if (backoff.Expired()) {
        return absl::UnavailableError("the server at " + client.server() +
                                      " could not be reached for " +
                                      absl::FormatDuration(client.retry().give_up_after) +
                                      "; the job goes on there: run `ptq watch` again when it is "
                                      "back");
      }
    }
    if (!client.canceller().SleepFor(backoff.NextWait())) return client.canceller().Check();
  }
}

}  // namespace ptq
