// The API's unary calls as C++ functions: deadlines, retries, paging and errors that people can
// read.
#ifndef PTQ_CLIENT_QUANTIZATION_CLIENT_H_
#define PTQ_CLIENT_QUANTIZATION_CLIENT_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/backoff.h"
#include "client/call_canceller.h"
#include "client/server_connection.h"

namespace ptq {

// Thread-compatible. `stubs` and `canceller` must outlive it. Names are full resource names. Errors
// are those of FromRpcStatus.
class QuantizationClient {
 public:
  struct Options {
    std::string server;  // HOST:PORT, for messages
    absl::Duration deadline = absl::Seconds(30);
    RetryOptions retry;  // of calls on a server that has answered before
  };
  QuantizationClient(ServiceStubs& stubs, CallCanceller& canceller, Options options);

  absl::StatusOr<v1::ServerCapabilities> GetCapabilities();
  absl::StatusOr<v1::Model> CreateModel(const v1::CreateModelRequest& request);
  absl::StatusOr<v1::Dataset> CreateDataset(const v1::CreateDatasetRequest& request);
  // The request must carry a request_id, so that a repeated attempt gives the same job.
  absl::StatusOr<v1::QuantizationJob> CreateJob(const v1::CreateQuantizationJobRequest& request);
  absl::StatusOr<v1::QuantizationJob> GetJob(const std::string& name);
  // Newest first as the server orders them; at most `limit` (0: all).
  absl::StatusOr<std::vector<v1::QuantizationJob>> ListJobs(const std::string& parent,
                                                            const std::string& filter,
                                                            int64_t limit);
  absl::Status CancelJob(const std::string& name);
  absl::StatusOr<v1::QuantizationJob> ResumeJob(const std::string& name);
  absl::Status DeleteJob(const std::string& name);
  absl::StatusOr<v1::QuantizationReport> GetReport(const std::string& name);
  absl::StatusOr<std::vector<v1::FileNode>> ListArtifacts(const std::string& job);
  absl::StatusOr<std::vector<v1::Digest>> FindMissingBlobs(const std::string& parent,
                                                           const std::vector<v1::Digest>& digests);
  // Calls `sink` for each line until the log, or with request.follow the job, ends.
  absl::Status ReadLogs(const v1::ReadJobLogsRequest& request,
                        const std::function<void(const v1::LogEntry&)>& sink);

  ServiceStubs& stubs() { return stubs_; }
  CallCanceller& canceller() { return canceller_; }
  const std::string& server() const { return options_.server; }
  const RetryOptions& retry() const { return options_.retry; }

 private:
  // Runs `call` with a fresh context and deadline. Before the first success an unreachable server
  // is reported at once; afterwards UNAVAILABLE is retried, as a server that restarts comes back.
  absl::Status Run(const std::function<grpc::Status(grpc::ClientContext*)>& call);
  absl::Status RunOnce(const std::function<grpc::Status(grpc::ClientContext*)>& call);

  ServiceStubs& stubs_;
  CallCanceller& canceller_;
  Options options_;
  bool answered_ = false;
};

}  // namespace ptq

#endif  // PTQ_CLIENT_QUANTIZATION_CLIENT_H_
