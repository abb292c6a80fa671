#include "client/quantization_client.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "client/rpc_status.h"
#include "common/status_macros.h"

namespace ptq {
namespace {

constexpr int kPageSize = 1000;
// Keeps a FindMissingBlobs request far below the server's receive limit of 4 MiB.
constexpr size_t kDigestsPerCall = 10'000;

v1::GetByName ByName(const std::string& name) {
  v1::GetByName request;
  request.set_name(name);
  return request;
}

v1::JobAction Action(const std::string& name) {
  v1::JobAction action;
  action.set_name(name);
  return action;
}

}  // namespace

QuantizationClient::QuantizationClient(ServiceStubs& stubs, CallCanceller& canceller,
                                       Options options)
    : stubs_(stubs), canceller_(canceller), options_(std::move(options)) {}

absl::Status QuantizationClient::RunOnce(
    const std::function<grpc::Status(grpc::ClientContext*)>& call) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       absl::ToChronoMilliseconds(options_.deadline));
  CallCanceller::Scope scope(canceller_, context);
  return FromRpcStatus(call(&context), options_.server);
}

absl::Status QuantizationClient::Run(
    const std::function<grpc::Status(grpc::ClientContext*)>& call) {
  Backoff backoff(options_.retry);
  while (true) {
    absl::Status status = RunOnce(call);
    if (!absl::IsUnavailable(status)) {
      answered_ |= !absl::IsDeadlineExceeded(status) && !absl::IsCancelled(status);
      return status;
    }
    if (!answered_ || backoff.Expired()) return status;
    if (!canceller_.SleepFor(backoff.NextWait())) return canceller_.Check();
  }
}

absl::StatusOr<v1::ServerCapabilities> QuantizationClient::GetCapabilities() {
  v1::ServerCapabilities response;
  PTQ_RETURN_IF_ERROR(Run([&](grpc::ClientContext* context) {
    return stubs_.capabilities->GetCapabilities(context, {}, &response);
  }));
  return response;
}

absl::StatusOr<v1::Model> QuantizationClient::CreateModel(const v1::CreateModelRequest& request) {
  v1::Model response;
  PTQ_RETURN_IF_ERROR(Run([&](grpc::ClientContext* context) {
    return stubs_.models->CreateModel(context, request, &response);
  }));
  return response;
}

absl::StatusOr<v1::Dataset> QuantizationClient::CreateDataset(
    const v1::CreateDatasetRequest& request) {
  v1::Dataset response;
  PTQ_RETURN_IF_ERROR(Run([&](grpc::ClientContext* context) {
    return stubs_.datasets->CreateDataset(context, request, &response);
  }));
  return response;
}

absl::StatusOr<v1::QuantizationJob> QuantizationClient::CreateJob(
    const v1::CreateQuantizationJobRequest& request) {
  v1::QuantizationJob response;
  PTQ_RETURN_IF_ERROR(Run([&](grpc::ClientContext* context) {
    return stubs_.jobs->CreateQuantizationJob(context, request, &response);
  }));
  return response;
}

absl::StatusOr<v1::QuantizationJob> QuantizationClient::GetJob(const std::string& name) {
  v1::QuantizationJob response;
  PTQ_RETURN_IF_ERROR(Run([&](grpc::ClientContext* context) {
    return stubs_.jobs->GetQuantizationJob(context, ByName(name), &response);
  }));
  return response;
}

absl::StatusOr<std::vector<v1::QuantizationJob>> QuantizationClient::ListJobs(
    const std::string& parent, const std::string& filter, int64_t limit) {
  std::vector<v1::QuantizationJob> jobs;
  v1::ListRequest request;
  request.set_parent(parent);
  request.set_filter(filter);
  request.set_page_size(limit > 0 && limit < kPageSize ? static_cast<int>(limit) : kPageSize);
  while (true) {
    v1::ListQuantizationJobsResponse page;
    PTQ_RETURN_IF_ERROR(Run([&](grpc::ClientContext* context) {
      return stubs_.jobs->ListQuantizationJobs(context, request, &page);
    }));
    for (auto& job : *page.mutable_jobs()) {
      jobs.push_back(std::move(job));
      if (limit > 0 && static_cast<int64_t>(jobs.size()) == limit) return jobs;
    }
    if (page.next_page_token().empty()) return jobs;
    request.set_page_token(page.next_page_token());
  }
}

absl::Status QuantizationClient::CancelJob(const std::string& name) {
  google::protobuf::Empty response;
  return Run([&](grpc::ClientContext* context) {
    return stubs_.jobs->CancelQuantizationJob(context, Action(name), &response);
  });
}

absl::StatusOr<v1::QuantizationJob> QuantizationClient::ResumeJob(const std::string& name) {
  v1::QuantizationJob response;
  PTQ_RETURN_IF_ERROR(Run([&](grpc::ClientContext* context) {
    return stubs_.jobs->ResumeQuantizationJob(context, Action(name), &response);
  }));
  return response;
}

absl::Status QuantizationClient::DeleteJob(const std::string& name) {
  google::protobuf::Empty response;
  return Run([&](grpc::ClientContext* context) {
    return stubs_.jobs->DeleteQuantizationJob(context, ByName(name), &response);
  });
}

absl::StatusOr<v1::QuantizationReport> QuantizationClient::GetReport(const std::string& name) {
  v1::QuantizationReport response;
  PTQ_RETURN_IF_ERROR(Run([&](grpc::ClientContext* context) {
    return stubs_.jobs->GetQuantizationReport(context, ByName(name), &response);
  }));
  return response;
}

absl::StatusOr<std::vector<v1::FileNode>> QuantizationClient::ListArtifacts(
    const std::string& job) {
  std::vector<v1::FileNode> files;
  v1::ListRequest request;
  request.set_parent(job);
  request.set_page_size(kPageSize);
  while (true) {
    v1::ListArtifactsResponse page;
    PTQ_RETURN_IF_ERROR(Run([&](grpc::ClientContext* context) {
      return stubs_.jobs->ListArtifacts(context, request, &page);
    }));
    for (auto& file : *page.mutable_files()) files.push_back(std::move(file));
    if (page.next_page_token().empty()) return files;
    request.set_page_token(page.next_page_token());
  }
}

absl::StatusOr<std::vector<v1::Digest>> QuantizationClient::FindMissingBlobs(
    const std::string& parent, const std::vector<v1::Digest>& digests) {
  std::vector<v1::Digest> missing;
  for (size_t begin = 0; begin < digests.size(); begin += kDigestsPerCall) {
    v1::FindMissingBlobsRequest request;
    request.set_parent(parent);
    for (size_t i = begin; i < std::min(digests.size(), begin + kDigestsPerCall); ++i) {
      *request.add_digests() = digests[i];
    }
    v1::FindMissingBlobsResponse response;
    PTQ_RETURN_IF_ERROR(Run([&](grpc::ClientContext* context) {
      return stubs_.blobs->FindMissingBlobs(context, request, &response);
    }));
    for (auto& digest : *response.mutable_missing()) missing.push_back(std::move(digest));
  }
  return missing;
}

absl::Status QuantizationClient::ReadLogs(const v1::ReadJobLogsRequest& request,
                                          const std::function<void(const v1::LogEntry&)>& sink) {
  v1::ReadJobLogsRequest remaining = request;
  Backoff backoff(options_.retry);
  while (true) {
    grpc::ClientContext context;
    CallCanceller::Scope scope(canceller_, context);
    const auto reader = stubs_.jobs->ReadJobLogs(&context, remaining);
    v1::LogEntry entry;
    while (reader->Read(&entry)) {
      answered_ = true;
      backoff.Succeeded();
      remaining.set_after_line(entry.line());
      sink(entry);
    }
    absl::Status status = FromRpcStatus(reader->Finish(), options_.server);
    if (!absl::IsUnavailable(status) || !answered_ || backoff.Expired()) return status;
    if (!canceller_.SleepFor(backoff.NextWait())) return canceller_.Check();
  }
}

}  // namespace ptq
