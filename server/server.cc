#include "server/server.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <malloc.h>

#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "server/blobs/blob_store.h"
#include "server/data_dir_lock.h"
#include "server/jobs/input_registry.h"
#include "server/jobs/input_source.h"
#include "server/jobs/job_event_hub.h"
#include "server/jobs/job_ledger.h"
#include "server/jobs/job_manager.h"
#include "server/listen_address.h"
#include "server/rpc/blob_store_service.h"
#include "server/rpc/byte_stream_service.h"
#include "server/rpc/capabilities_service.h"
#include "server/rpc/input_services.h"
#include "server/rpc/page_token.h"
#include "server/rpc/quantization_service.h"
#include "server/store/sqlite_job_store.h"

namespace ptq {
namespace {

constexpr int kMaxMessageBytes = 4 << 20;
// Threads for short calls, beside those of streams that move bytes.
constexpr int kUnaryThreads = 64;
constexpr absl::Duration kShutdownGrace = absl::Seconds(3);

// Members stand in the order in which they are made: what is used outlives its users.
class PtqServer final : public Server {
 public:
  PtqServer(const ServerOptions& options, std::unique_ptr<DataDirLock> lock,
            std::unique_ptr<SqliteJobStore> store, std::unique_ptr<BlobStore> blobs,
            ModelRoots roots, std::unique_ptr<WorkerLauncher> launcher)
      : lock_(std::move(lock)),
        store_(std::move(store)),
        blobs_(std::move(blobs)),
        launcher_(std::move(launcher)),
        capabilities_(roots.roots(), options.max_concurrent_jobs),
        sources_(*blobs_, std::move(roots)),
        inputs_(JoinPath(options.data_dir, "tmp"), *store_, sources_),
        ledger_(*store_, hub_),
        manager_({.max_concurrent_jobs = options.max_concurrent_jobs},
                 {options.data_dir, ledger_, *blobs_, inputs_, *launcher_}),
        tokens_(store_->secret()),
        input_context_{inputs_, *store_, *blobs_, tokens_},
        byte_streams_(*blobs_, options.max_byte_streams),
        blob_service_(*blobs_),
        models_(input_context_),
        datasets_(input_context_),
        jobs_(manager_, tokens_) {}

  ~PtqServer() override { Stop(); }

  absl::Status Serve(const ServerOptions& options, const ListenAddress& address) {
    PTQ_RETURN_IF_ERROR(inputs_.Start());
    PTQ_RETURN_IF_ERROR(MakeDirectories(JoinPath(options.data_dir, "jobs")));
    grpc::EnableDefaultHealthCheckService(true);
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(absl::StrCat(address.host, ":", address.port),
                             grpc::InsecureServerCredentials(), &port);
    for (grpc::Service* service : std::initializer_list<grpc::Service*>{
             &byte_streams_, &blob_service_, &capabilities_, &models_, &datasets_, &jobs_}) {
      builder.RegisterService(service);
    }
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    // Without this a second server could share the port and take half of the calls.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    // A client that vanished is noticed within a minute, so that its upload can be taken up again.
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 30'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 4);
    grpc::ResourceQuota quota("ptqd");
    quota.SetMaxThreads(options.max_byte_streams + kUnaryThreads);
    builder.SetResourceQuota(quota);
    grpc_server_ = builder.BuildAndStart();
    if (grpc_server_ == nullptr || port == 0) {
      return absl::UnavailableError("cannot listen on " + options.listen + "; is the port in use?");
    }
    address_ = absl::StrCat(address.host, ":", port);
    // Only now: a server that cannot listen must not touch the workers of the one that does.
    PTQ_RETURN_IF_ERROR(manager_.Start());
    SetServing(true);
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

  void Stop() override {
    if (grpc_server_ == nullptr) return;
    SetServing(false);
    std::thread workers([this] { manager_.Stop(); });
    hub_.Stop();
    grpc_server_->Shutdown(absl::ToChronoTime(absl::Now() + kShutdownGrace));
    grpc_server_->Wait();
    workers.join();
    grpc_server_.reset();
  }

 private:
  void SetServing(bool serving) {
    grpc::HealthCheckServiceInterface* health = grpc_server_->GetHealthCheckService();
    health->SetServingStatus(serving);
    for (const char* service :
         {"ptq.v1.QuantizationService", "ptq.v1.ModelService", "ptq.v1.DatasetService",
          "ptq.v1.BlobStore", "ptq.v1.Capabilities", "google.bytestream.ByteStream"}) {
      health->SetServingStatus(service, serving);
    }
  }

  const std::unique_ptr<DataDirLock> lock_;
  const std::unique_ptr<SqliteJobStore> store_;
  const std::unique_ptr<BlobStore> blobs_;
  const std::unique_ptr<WorkerLauncher> launcher_;
  JobEventHub hub_;
  CapabilitiesServiceImpl capabilities_;
  InputSources sources_;
  InputRegistry inputs_;
  JobLedger ledger_;
  JobManager manager_;
  const PageTokens tokens_;
  InputServiceContext input_context_;
  ByteStreamServiceImpl byte_streams_;
  BlobStoreServiceImpl blob_service_;
  ModelServiceImpl models_;
  DatasetServiceImpl datasets_;
  QuantizationServiceImpl jobs_;
  std::unique_ptr<grpc::Server> grpc_server_;
  std::string address_;
};

}  // namespace

void TuneAllocatorForStreams() {
  ::mallopt(M_MMAP_THRESHOLD, 8 << 20);
  ::mallopt(M_TRIM_THRESHOLD, 8 << 20);
  ::mallopt(M_ARENA_MAX, 4);
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& given,
                                                      std::unique_ptr<WorkerLauncher> launcher) {
  ServerOptions options = given;
  PTQ_ASSIGN_OR_RETURN(const ListenAddress address, ParseListenAddress(options.listen));
  PTQ_ASSIGN_OR_RETURN(ModelRoots roots, ModelRoots::Create(options.model_roots));
  PTQ_RETURN_IF_ERROR(MakeDirectories(options.data_dir));
  std::error_code error;
  // Workers get absolute paths, whatever their working folder.
  options.data_dir = std::filesystem::canonical(options.data_dir, error).string();
  if (error) return ErrnoStatus(error.value(), given.data_dir);
  PTQ_ASSIGN_OR_RETURN(auto lock, DataDirLock::Take(options.data_dir));
  PTQ_ASSIGN_OR_RETURN(auto store,
                       SqliteJobStore::Open(JoinPath(options.data_dir, "jobs.sqlite3")));
  PTQ_ASSIGN_OR_RETURN(auto blobs, BlobStore::Open(options.data_dir, *store));
  auto server =
      std::make_unique<PtqServer>(options, std::move(lock), std::move(store), std::move(blobs),
                                  std::move(roots), std::move(launcher));
  PTQ_RETURN_IF_ERROR(server->Serve(options, address));
  return server;
}

}  // namespace ptq
