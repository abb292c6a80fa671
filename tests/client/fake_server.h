// A ptqd in the test's own process, whose connections break where a test says so.
#ifndef PTQ_TESTS_CLIENT_FAKE_SERVER_H_
#define PTQ_TESTS_CLIENT_FAKE_SERVER_H_

#include <grpcpp/server.h>
#include <grpcpp/server_context.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "client/call_canceller.h"
#include "client/quantization_client.h"
#include "client/server_connection.h"
#include "google/bytestream/bytestream.grpc.pb.h"
#include "ptq/v1/blob_store.grpc.pb.h"
#include "ptq/v1/capabilities.grpc.pb.h"
#include "ptq/v1/dataset_service.grpc.pb.h"
#include "ptq/v1/model_service.grpc.pb.h"
#include "ptq/v1/quantization_service.grpc.pb.h"

namespace ptq::testing {

inline constexpr char kJob[] = "tenants/default/quantizationJobs/j1";

// What the server has and what it will do. Tests fill it before they call.
struct FakeState {
  std::mutex mutex;
  std::map<std::string, std::string> blobs;         // by hash
  std::map<std::string, std::string> uploads;       // by resource name
  std::vector<std::string> upload_names;            // of each Write call
  std::vector<int64_t> write_offsets;               // of each Write call's first message
  std::vector<int64_t> read_offsets;                // of each Read call
  int64_t break_write_after = -1;                   // bytes, once; -1: never
  int64_t break_read_after = -1;                    // bytes, once
  int corrupt_reads = 0;                            // that many Read calls send a wrong byte
  int busy_writes = 0;                              // that many Write calls are ABORTED
  std::map<std::string, v1::QuantizationJob> jobs;  // by name
  std::vector<v1::JobEvent> events;                 // of every job
  std::vector<int64_t> watched_after;               // after_sequence of each Watch call
  int break_watch_after = -1;                       // events, once
  bool hang_watch = false;                          // stay silent until the call is cancelled
  std::vector<v1::FileNode> artifacts;
  std::string report_json = "{}";
  v1::CreateQuantizationJobRequest last_request;
  std::vector<std::string> cancelled;
};

grpc::Status Unavailable();

class FakeServer : public v1::QuantizationService::Service,
                   public v1::ModelService::Service,
                   public v1::DatasetService::Service,
                   public v1::BlobStore::Service,
                   public v1::Capabilities::Service,
                   public google::bytestream::ByteStream::Service {
 public:
  FakeServer();
  ~FakeServer();

  FakeState& state() { return state_; }
  QuantizationClient& client() { return client_; }
  ServiceStubs Stubs() { return MakeStubs(channel_); }
  CallCanceller& canceller() { return canceller_; }
  // Adds a blob and an artifact of that name.
  void AddArtifact(const std::string& path, const std::string& bytes);
  // A job in a state with an event for it.
  v1::QuantizationJob AddJob(const std::string& name, v1::QuantizationJob::State state);
  void AddSnapshot(const v1::QuantizationJob& job);
  void AddBlock(int block, double loss_first, double loss_best);

  grpc::Status GetCapabilities(grpc::ServerContext*, const google::protobuf::Empty*,
                               v1::ServerCapabilities* response) override;
  grpc::Status FindMissingBlobs(grpc::ServerContext*, const v1::FindMissingBlobsRequest* request,
                                v1::FindMissingBlobsResponse* response) override;
  grpc::Status CreateModel(grpc::ServerContext*, const v1::CreateModelRequest* request,
                           v1::Model* response) override;
  grpc::Status CreateDataset(grpc::ServerContext*, const v1::CreateDatasetRequest* request,
                             v1::Dataset* response) override;
  grpc::Status CreateQuantizationJob(grpc::ServerContext*,
                                     const v1::CreateQuantizationJobRequest* request,
                                     v1::QuantizationJob* response) override;
  grpc::Status GetQuantizationJob(grpc::ServerContext*, const v1::GetByName* request,
                                  v1::QuantizationJob* response) override;
  grpc::Status ListQuantizationJobs(grpc::ServerContext*, const v1::ListRequest* request,
                                    v1::ListQuantizationJobsResponse* response) override;
  grpc::Status CancelQuantizationJob(grpc::ServerContext*, const v1::JobAction* request,
                                     google::protobuf::Empty*) override;
  grpc::Status WatchQuantizationJob(grpc::ServerContext* context, const v1::WatchRequest* request,
                                    grpc::ServerWriter<v1::JobEvent>* writer) override;
  grpc::Status GetQuantizationReport(grpc::ServerContext*, const v1::GetByName* request,
                                     v1::QuantizationReport* response) override;
  grpc::Status ListArtifacts(grpc::ServerContext*, const v1::ListRequest* request,
                             v1::ListArtifactsResponse* response) override;
  grpc::Status Write(grpc::ServerContext*,
                     grpc::ServerReader<google::bytestream::WriteRequest>* reader,
                     google::bytestream::WriteResponse* response) override;
  grpc::Status QueryWriteStatus(grpc::ServerContext*,
                                const google::bytestream::QueryWriteStatusRequest* request,
                                google::bytestream::QueryWriteStatusResponse* response) override;
  grpc::Status Read(grpc::ServerContext*, const google::bytestream::ReadRequest* request,
                    grpc::ServerWriter<google::bytestream::ReadResponse>* writer) override;

 private:
  FakeState state_;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  ServiceStubs stubs_;
  CallCanceller canceller_;
  QuantizationClient client_;
};

}  // namespace ptq::testing

#endif  // PTQ_TESTS_CLIENT_FAKE_SERVER_H_
