// Follows a job to its end across broken connections and server restarts.
#ifndef PTQ_CLIENT_JOB_WATCHER_H_
#define PTQ_CLIENT_JOB_WATCHER_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/quantization_client.h"

namespace ptq {

// Called from the watching thread.
class JobObserver {
 public:
  virtual ~JobObserver() = default;
  // Snapshots and blocks, each sequence number once and in order; never heartbeats.
  virtual void OnEvent(const v1::JobEvent& event) = 0;
  // The connection is gone and is being tried again; and it is back.
  virtual void OnDisconnected() = 0;
  virtual void OnReconnected() = 0;
};

// True for SUCCEEDED, FAILED, CANCELLED and EXPIRED.
bool HasEnded(v1::QuantizationJob::State state);

// Watches until the job has ended and returns its last state. kUnavailable after a minute (the
// client's RetryOptions) without a connection; kCancelled if the client's canceller was used.
absl::StatusOr<v1::QuantizationJob> WatchJob(QuantizationClient& client, const std::string& name,
                                             JobObserver& observer);

}  // namespace ptq

#endif  // PTQ_CLIENT_JOB_WATCHER_H_
