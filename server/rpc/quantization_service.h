// ptq.v1.QuantizationService over JobManager.
#ifndef PTQ_SERVER_RPC_QUANTIZATION_SERVICE_H_
#define PTQ_SERVER_RPC_QUANTIZATION_SERVICE_H_

#include "ptq/v1/quantization_service.grpc.pb.h"
#include "server/jobs/job_manager.h"
#include "server/rpc/page_token.h"

namespace ptq {

// Thread-safe. Short calls are synchronous; the two streams, which mostly wait, use the callback
// API and no thread. Borrows must outlive it.
class QuantizationServiceImpl final
    : public v1::QuantizationService::WithCallbackMethod_WatchQuantizationJob<
          v1::QuantizationService::WithCallbackMethod_ReadJobLogs<
              v1::QuantizationService::Service>> {
 public:
  QuantizationServiceImpl(JobManager& manager, const PageTokens& tokens)
      : manager_(manager), tokens_(tokens) {}

  grpc::Status CreateQuantizationJob(grpc::ServerContext* context,
                                     const v1::CreateQuantizationJobRequest* request,
                                     v1::QuantizationJob* response) override;
  grpc::Status GetQuantizationJob(grpc::ServerContext* context, const v1::GetByName* request,
                                  v1::QuantizationJob* response) override;
  grpc::Status ListQuantizationJobs(grpc::ServerContext* context, const v1::ListRequest* request,
                                    v1::ListQuantizationJobsResponse* response) override;
  grpc::Status CancelQuantizationJob(grpc::ServerContext* context, const v1::JobAction* request,
                                     google::protobuf::Empty* response) override;
  grpc::Status PauseQuantizationJob(grpc::ServerContext* context, const v1::JobAction* request,
                                    v1::QuantizationJob* response) override;
  grpc::Status ResumeQuantizationJob(grpc::ServerContext* context, const v1::JobAction* request,
                                     v1::QuantizationJob* response) override;
  grpc::Status DeleteQuantizationJob(grpc::ServerContext* context, const v1::GetByName* request,
                                     google::protobuf::Empty* response) override;
  grpc::ServerWriteReactor<v1::JobEvent>* WatchQuantizationJob(
      grpc::CallbackServerContext* context, const v1::WatchRequest* request) override;
  grpc::ServerWriteReactor<v1::LogEntry>* ReadJobLogs(
      grpc::CallbackServerContext* context, const v1::ReadJobLogsRequest* request) override;
  grpc::Status GetQuantizationReport(grpc::ServerContext* context, const v1::GetByName* request,
                                     v1::QuantizationReport* response) override;
  grpc::Status ListArtifacts(grpc::ServerContext* context, const v1::ListRequest* request,
                             v1::ListArtifactsResponse* response) override;

 private:
  absl::StatusOr<v1::QuantizationJob> Create(const v1::CreateQuantizationJobRequest& request);
  absl::Status List(const v1::ListRequest& request, v1::ListQuantizationJobsResponse& response);
  absl::Status Report(const v1::GetByName& request, v1::QuantizationReport& response);
  absl::Status Artifacts(const v1::ListRequest& request, v1::ListArtifactsResponse& response);

  JobManager& manager_;
  const PageTokens& tokens_;
};

}  // namespace ptq

#endif  // PTQ_SERVER_RPC_QUANTIZATION_SERVICE_H_
