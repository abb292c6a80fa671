#include "tests/client/fake_server.h"

#include <grpcpp/server_builder.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_split.h"
#include "common/sha256.h"

namespace ptq::testing {
namespace {

constexpr size_t kReadChunk = 1000;

QuantizationClient::Options FastOptions() {
  QuantizationClient::Options options;
  options.server = "test:1";
  options.retry = {absl::Milliseconds(1), absl::Milliseconds(5), absl::Milliseconds(300)};
  return options;
}

// "{parent}/.../blobs/{hash}/{size}".
std::string HashOf(const std::string& name) {
  const std::vector<std::string> parts = absl::StrSplit(name, '/');
  return parts[parts.size() - 2];
}
int64_t SizeOf(const std::string& name) { return std::stoll(name.substr(name.rfind('/') + 1)); }

}  // namespace

grpc::Status Unavailable() { return {grpc::StatusCode::UNAVAILABLE, "cut"}; }

FakeServer::FakeServer() : client_(stubs_, canceller_, FastOptions()) {
  grpc::ServerBuilder builder;
  builder.RegisterService(static_cast<v1::QuantizationService::Service*>(this));
  builder.RegisterService(static_cast<v1::ModelService::Service*>(this));
  builder.RegisterService(static_cast<v1::DatasetService::Service*>(this));
  builder.RegisterService(static_cast<v1::BlobStore::Service*>(this));
  builder.RegisterService(static_cast<v1::Capabilities::Service*>(this));
  builder.RegisterService(static_cast<google::bytestream::ByteStream::Service*>(this));
  server_ = builder.BuildAndStart();
  channel_ = server_->InProcessChannel({});
  stubs_ = MakeStubs(channel_);
}

FakeServer::~FakeServer() { server_->Shutdown(std::chrono::system_clock::now()); }

void FakeServer::AddArtifact(const std::string& path, const std::string& bytes) {
  v1::FileNode node;
  node.set_path(path);
  node.mutable_digest()->set_hash(Sha256Hex(bytes));
  node.mutable_digest()->set_size_bytes(static_cast<int64_t>(bytes.size()));
  state_.blobs[node.digest().hash()] = bytes;
  state_.artifacts.push_back(node);
}

v1::QuantizationJob FakeServer::AddJob(const std::string& name,
                                       v1::QuantizationJob::State job_state) {
  v1::QuantizationJob job;
  job.set_name(name);
  job.set_state(job_state);
  job.mutable_progress()->set_blocks_total(2);
  state_.jobs[name] = job;
  AddSnapshot(job);
  return job;
}

void FakeServer::AddSnapshot(const v1::QuantizationJob& job) {
  v1::JobEvent event;
  event.set_sequence(static_cast<int64_t>(state_.events.size()) + 1);
  *event.mutable_snapshot() = job;
  state_.events.push_back(event);
  state_.jobs[job.name()] = job;
}

void FakeServer::AddBlock(int block, double loss_first, double loss_best) {
  v1::JobEvent event;
  event.set_sequence(static_cast<int64_t>(state_.events.size()) + 1);
  event.mutable_block()->set_block(block);
  event.mutable_block()->set_name("model.layers." + std::to_string(block));
  event.mutable_block()->set_seconds(1.5);
  event.mutable_block()->set_loss_first(loss_first);
  event.mutable_block()->set_loss_best(loss_best);
  state_.events.push_back(event);
}

grpc::Status FakeServer::GetCapabilities(grpc::ServerContext*, const google::protobuf::Empty*,
                                         v1::ServerCapabilities* response) {
  response->set_engine_version("1.2.3");
  response->set_max_chunk_bytes(2 << 20);
  return grpc::Status::OK;
}

grpc::Status FakeServer::FindMissingBlobs(grpc::ServerContext*,
                                          const v1::FindMissingBlobsRequest* request,
                                          v1::FindMissingBlobsResponse* response) {
  std::lock_guard<std::mutex> lock(state_.mutex);
  for (const v1::Digest& digest : request->digests()) {
    if (state_.blobs.count(digest.hash()) == 0) *response->add_missing() = digest;
  }
  return grpc::Status::OK;
}

grpc::Status FakeServer::CreateModel(grpc::ServerContext*, const v1::CreateModelRequest* request,
                                     v1::Model* response) {
  *response->mutable_source() = request->source();
  response->set_name("tenants/default/models/m1");
  return grpc::Status::OK;
}

grpc::Status FakeServer::CreateDataset(grpc::ServerContext*,
                                       const v1::CreateDatasetRequest* request,
                                       v1::Dataset* response) {
  *response->mutable_source() = request->source();
  response->set_name("tenants/default/datasets/d1");
  return grpc::Status::OK;
}

grpc::Status FakeServer::CreateQuantizationJob(grpc::ServerContext*,
                                               const v1::CreateQuantizationJobRequest* request,
                                               v1::QuantizationJob* response) {
  std::lock_guard<std::mutex> lock(state_.mutex);
  state_.last_request = *request;
  response->set_name("tenants/default/quantizationJobs/j1");
  response->set_state(v1::QuantizationJob::QUEUED);
  response->set_job_spec_json(R"({"model":"manifest","calibration":"","evaluation":"","bits":4})");
  return grpc::Status::OK;
}

grpc::Status FakeServer::GetQuantizationJob(grpc::ServerContext*, const v1::GetByName* request,
                                            v1::QuantizationJob* response) {
  std::lock_guard<std::mutex> lock(state_.mutex);
  const auto job = state_.jobs.find(request->name());
  if (job == state_.jobs.end()) return {grpc::StatusCode::NOT_FOUND, "there is no such job"};
  *response = job->second;
  return grpc::Status::OK;
}

grpc::Status FakeServer::ListQuantizationJobs(grpc::ServerContext*, const v1::ListRequest* request,
                                              v1::ListQuantizationJobsResponse* response) {
  // One job a page: clients must follow the tokens.
  std::lock_guard<std::mutex> lock(state_.mutex);
  auto job =
      request->page_token().empty() ? state_.jobs.begin() : state_.jobs.find(request->page_token());
  if (job == state_.jobs.end()) return grpc::Status::OK;
  *response->add_jobs() = job->second;
  if (++job != state_.jobs.end()) response->set_next_page_token(job->first);
  return grpc::Status::OK;
}

grpc::Status FakeServer::CancelQuantizationJob(grpc::ServerContext*, const v1::JobAction* request,
                                               google::protobuf::Empty*) {
  std::lock_guard<std::mutex> lock(state_.mutex);
  state_.cancelled.push_back(request->name());
  return grpc::Status::OK;
}

grpc::Status FakeServer::WatchQuantizationJob(grpc::ServerContext* context,
                                              const v1::WatchRequest* request,
                                              grpc::ServerWriter<v1::JobEvent>* writer) {
  int sent = 0;
  std::unique_lock<std::mutex> lock(state_.mutex);
  state_.watched_after.push_back(request->after_sequence());
  for (const v1::JobEvent& event : state_.events) {
    if (event.sequence() <= request->after_sequence()) continue;
    if (state_.break_watch_after >= 0 && sent == state_.break_watch_after) {
      state_.break_watch_after = -1;
      return Unavailable();
    }
    writer->Write(event);
    v1::JobEvent heartbeat;
    heartbeat.set_sequence(event.sequence());
    heartbeat.mutable_heartbeat();
    writer->Write(heartbeat);
    ++sent;
  }
  const bool hang = state_.hang_watch;
  lock.unlock();
  while (hang && !context->IsCancelled()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return grpc::Status::OK;
}

grpc::Status FakeServer::GetQuantizationReport(grpc::ServerContext*, const v1::GetByName* request,
                                               v1::QuantizationReport* response) {
  std::lock_guard<std::mutex> lock(state_.mutex);
  response->set_name(request->name());
  response->set_report_json(state_.report_json);
  for (const v1::FileNode& node : state_.artifacts) {
    if (node.path() == "report.html") *response->mutable_report_html() = node.digest();
  }
  return grpc::Status::OK;
}

grpc::Status FakeServer::ListArtifacts(grpc::ServerContext*, const v1::ListRequest*,
                                       v1::ListArtifactsResponse* response) {
  std::lock_guard<std::mutex> lock(state_.mutex);
  for (const v1::FileNode& node : state_.artifacts) *response->add_files() = node;
  return grpc::Status::OK;
}

grpc::Status FakeServer::Write(grpc::ServerContext*,
                               grpc::ServerReader<google::bytestream::WriteRequest>* reader,
                               google::bytestream::WriteResponse* response) {
  google::bytestream::WriteRequest request;
  std::string name;
  int64_t received = 0;
  while (reader->Read(&request)) {
    std::lock_guard<std::mutex> lock(state_.mutex);
    if (name.empty()) {
      name = request.resource_name();
      state_.upload_names.push_back(name);
      state_.write_offsets.push_back(request.write_offset());
      if (state_.busy_writes > 0) {
        --state_.busy_writes;
        return {grpc::StatusCode::ABORTED, "another writer has this upload"};
      }
    }
    std::string& bytes = state_.uploads[name];
    if (request.write_offset() != static_cast<int64_t>(bytes.size())) {
      return {grpc::StatusCode::OUT_OF_RANGE, "wrong offset"};
    }
    bytes += request.data();
    received += static_cast<int64_t>(request.data().size());
    if (state_.break_write_after >= 0 && received >= state_.break_write_after) {
      state_.break_write_after = -1;
      return Unavailable();
    }
    if (!request.finish_write()) continue;
    if (Sha256Hex(bytes) != HashOf(name) || static_cast<int64_t>(bytes.size()) != SizeOf(name)) {
      return {grpc::StatusCode::INVALID_ARGUMENT, "the bytes do not fit the digest"};
    }
    state_.blobs[HashOf(name)] = bytes;
    response->set_committed_size(static_cast<int64_t>(bytes.size()));
    return grpc::Status::OK;
  }
  return Unavailable();
}

grpc::Status FakeServer::QueryWriteStatus(
    grpc::ServerContext*, const google::bytestream::QueryWriteStatusRequest* request,
    google::bytestream::QueryWriteStatusResponse* response) {
  std::lock_guard<std::mutex> lock(state_.mutex);
  const auto upload = state_.uploads.find(request->resource_name());
  if (upload == state_.uploads.end()) {
    return {grpc::StatusCode::NOT_FOUND, "no such upload"};
  }
  response->set_committed_size(static_cast<int64_t>(upload->second.size()));
  response->set_complete(state_.blobs.count(HashOf(request->resource_name())) > 0);
  return grpc::Status::OK;
}

grpc::Status FakeServer::Read(grpc::ServerContext*, const google::bytestream::ReadRequest* request,
                              grpc::ServerWriter<google::bytestream::ReadResponse>* writer) {
  std::lock_guard<std::mutex> lock(state_.mutex);
  state_.read_offsets.push_back(request->read_offset());
  const auto blob = state_.blobs.find(HashOf(request->resource_name()));
  if (blob == state_.blobs.end()) return {grpc::StatusCode::NOT_FOUND, "no such blob"};
  std::string bytes = blob->second;
  if (state_.corrupt_reads > 0 && !bytes.empty()) {
    --state_.corrupt_reads;
    bytes.back() = static_cast<char>(bytes.back() ^ 1);
  }
  for (size_t offset = static_cast<size_t>(request->read_offset()); offset < bytes.size();
       offset += kReadChunk) {
    if (state_.break_read_after >= 0 && static_cast<int64_t>(offset) >= state_.break_read_after) {
      state_.break_read_after = -1;
      return Unavailable();
    }
    google::bytestream::ReadResponse response;
    response.set_data(bytes.substr(offset, kReadChunk));
    writer->Write(response);
  }
  return grpc::Status::OK;
}

}  // namespace ptq::testing
