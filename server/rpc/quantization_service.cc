#include "server/rpc/quantization_service.h"

#include <memory>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/sha256.h"
#include "common/status_macros.h"
#include "server/errors/status_details.h"
#include "server/jobs/job_state.h"
#include "server/jobs/job_submission.h"
#include "server/jobs/resource_names.h"
#include "server/rpc/grpc_status.h"
#include "server/rpc/job_streams.h"
#include "server/rpc/report_conversion.h"
#include "server/rpc/request_key.h"
#include "server/store/proto_time.h"

namespace ptq {
namespace {

constexpr char kCollection[] = "quantizationJobs";
constexpr int64_t kMaxReportBytes = 64 << 20;
constexpr int kAllArtifacts = 1 << 30;

absl::StatusOr<ResourceName> ParseJobName(const std::string& name,
                                          const std::string& field = "name") {
  return ParseResourceName(name, kCollection, field);
}

absl::Status CheckStates(const std::vector<FilterTerm>& terms) {
  for (const FilterTerm& term : terms) {
    v1::QuantizationJob::State state;
    if (term.field == FilterTerm::Field::kState &&
        !v1::QuantizationJob::State_Parse(term.text, &state)) {
      return InvalidField("filter", absl::StrFormat("at position %d: %s is no state; they are "
                                                    "QUEUED, PENDING, RUNNING, SUCCEEDED, FAILED, "
                                                    "CANCELLING, CANCELLED, PAUSED, EXPIRED",
                                                    term.position, term.text.substr(0, 40)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::QuantizationJob> QuantizationServiceImpl::Create(
    const v1::CreateQuantizationJobRequest& request) {
  PTQ_ASSIGN_OR_RETURN(const std::string tenant, ParseTenant(request.parent(), "parent"));
  PTQ_ASSIGN_OR_RETURN(const auto key, MakeRequestKey("CreateQuantizationJob", request));
  JobRunContext& context = manager_.context();
  if (key.has_value()) {
    PTQ_ASSIGN_OR_RETURN(const auto earlier, context.ledger.store().FindRequest(tenant, *key));
    if (earlier.has_value()) {
      PTQ_ASSIGN_OR_RETURN(JobRecord record, context.ledger.Get(tenant, *earlier));
      return std::move(record.job);
    }
  }
  PTQ_ASSIGN_OR_RETURN(JobRecord record, MakeJobRecord(tenant, request, context.inputs));
  if (request.validate_only()) return std::move(record.job);
  PTQ_ASSIGN_OR_RETURN(record, manager_.Submit(std::move(record), key));
  return std::move(record.job);
}

grpc::Status QuantizationServiceImpl::CreateQuantizationJob(
    grpc::ServerContext*, const v1::CreateQuantizationJobRequest* request,
    v1::QuantizationJob* response) {
  auto job = Create(*request);
  if (!job.ok()) return ToGrpcStatus(job.status());
  *response = *std::move(job);
  return grpc::Status::OK;
}

grpc::Status QuantizationServiceImpl::GetQuantizationJob(grpc::ServerContext*,
                                                         const v1::GetByName* request,
                                                         v1::QuantizationJob* response) {
  const auto name = ParseJobName(request->name());
  if (!name.ok()) return ToGrpcStatus(name.status());
  auto record = manager_.context().ledger.Get(name->tenant, name->id);
  if (!record.ok()) return ToGrpcStatus(record.status());
  *response = std::move(record->job);
  return grpc::Status::OK;
}

absl::Status QuantizationServiceImpl::List(const v1::ListRequest& request,
                                           v1::ListQuantizationJobsResponse& response) {
  PTQ_ASSIGN_OR_RETURN(const std::string tenant, ParseTenant(request.parent(), "parent"));
  PTQ_ASSIGN_OR_RETURN(const int page_size, PageSize(request));
  PTQ_ASSIGN_OR_RETURN(const auto filter, ParseListFilter(request.filter()));
  PTQ_RETURN_IF_ERROR(CheckStates(filter));
  PTQ_ASSIGN_OR_RETURN(const auto token, tokens_.Decode(kCollection, request));
  std::optional<ListCursor> cursor;
  if (token.has_value()) {
    PTQ_ASSIGN_OR_RETURN(cursor, ParseCursor(*token));
  }
  PTQ_ASSIGN_OR_RETURN(auto records, manager_.context().ledger.store().ListJobs(
                                         tenant, filter, cursor, page_size + 1));
  const bool more = static_cast<int>(records.size()) > page_size;
  if (more) records.pop_back();
  for (JobRecord& record : records) *response.add_jobs() = std::move(record.job);
  if (more) {
    const v1::QuantizationJob& last = response.jobs(response.jobs_size() - 1);
    response.set_next_page_token(tokens_.Encode(
        kCollection, request, CursorText({FromProtoTime(last.create_time()), records.back().id})));
  }
  return absl::OkStatus();
}

grpc::Status QuantizationServiceImpl::ListQuantizationJobs(
    grpc::ServerContext*, const v1::ListRequest* request,
    v1::ListQuantizationJobsResponse* response) {
  return ToGrpcStatus(List(*request, *response));
}

grpc::Status QuantizationServiceImpl::CancelQuantizationJob(grpc::ServerContext*,
                                                            const v1::JobAction* request,
                                                            google::protobuf::Empty*) {
  const auto name = ParseJobName(request->name());
  if (!name.ok()) return ToGrpcStatus(name.status());
  return ToGrpcStatus(manager_.Cancel(name->tenant, name->id, request->etag()));
}

grpc::Status QuantizationServiceImpl::PauseQuantizationJob(grpc::ServerContext*,
                                                           const v1::JobAction*,
                                                           v1::QuantizationJob*) {
  return ToGrpcStatus(WithReason(
      absl::UnimplementedError("jobs cannot be paused yet; cancel the job and resume it later: it "
                               "continues after its last finished block"),
      "PAUSE_NOT_SERVED"));
}

grpc::Status QuantizationServiceImpl::ResumeQuantizationJob(grpc::ServerContext*,
                                                            const v1::JobAction* request,
                                                            v1::QuantizationJob* response) {
  const auto name = ParseJobName(request->name());
  if (!name.ok()) return ToGrpcStatus(name.status());
  auto record = manager_.Resume(name->tenant, name->id, request->etag());
  if (!record.ok()) return ToGrpcStatus(record.status());
  *response = std::move(record->job);
  return grpc::Status::OK;
}

grpc::Status QuantizationServiceImpl::DeleteQuantizationJob(grpc::ServerContext*,
                                                            const v1::GetByName* request,
                                                            google::protobuf::Empty*) {
  const auto name = ParseJobName(request->name());
  if (!name.ok()) return ToGrpcStatus(name.status());
  return ToGrpcStatus(manager_.Delete(name->tenant, name->id));
}

grpc::ServerWriteReactor<v1::JobEvent>* QuantizationServiceImpl::WatchQuantizationJob(
    grpc::CallbackServerContext*, const v1::WatchRequest* request) {
  using Stream = PullStream<v1::JobEvent>;
  JobLedger& ledger = manager_.context().ledger;
  const auto name = ParseJobName(request->name());
  if (!name.ok()) return Stream::Refuse(name.status());
  auto source = WatchSource::Create(ledger, name->tenant, name->id, request->after_sequence());
  if (!source.ok()) return Stream::Refuse(source.status());
  const auto shared = std::make_shared<WatchSource>(*std::move(source));
  return Stream::Start(ledger.hub(), JobLedger::Key(name->tenant, name->id),
                       [shared](v1::JobEvent& event) { return shared->Next(event); });
}

grpc::ServerWriteReactor<v1::LogEntry>* QuantizationServiceImpl::ReadJobLogs(
    grpc::CallbackServerContext*, const v1::ReadJobLogsRequest* request) {
  using Stream = PullStream<v1::LogEntry>;
  JobLedger& ledger = manager_.context().ledger;
  const auto name = ParseJobName(request->name());
  if (!name.ok()) return Stream::Refuse(name.status());
  if (request->after_line() < 0) {
    return Stream::Refuse(InvalidField("after_line", "is negative"));
  }
  const auto shared = std::make_shared<LogSource>(ledger, name->tenant, name->id,
                                                  manager_.context().JobDir(name->id),
                                                  request->after_line(), request->follow());
  return Stream::Start(ledger.hub(), JobLedger::Key(name->tenant, name->id),
                       [shared](v1::LogEntry& entry) { return shared->Next(entry); });
}

absl::Status QuantizationServiceImpl::Report(const v1::GetByName& request,
                                             v1::QuantizationReport& response) {
  PTQ_ASSIGN_OR_RETURN(const ResourceName name, ParseJobName(request.name()));
  JobRunContext& context = manager_.context();
  PTQ_ASSIGN_OR_RETURN(const JobRecord record, context.ledger.Get(name.tenant, name.id));
  if (record.job.state() != v1::QuantizationJob::SUCCEEDED) {
    return WrongState(request.name(), "JOB_NOT_SUCCEEDED",
                      "only a SUCCEEDED job has a report; this one is " +
                          v1::QuantizationJob::State_Name(record.job.state()));
  }
  PTQ_ASSIGN_OR_RETURN(const auto files, context.ledger.store().ListArtifacts(name.tenant, name.id,
                                                                              "", kAllArtifacts));
  response.set_name(request.name());
  for (const v1::FileNode& file : files) {
    if (file.path() == "report.html") *response.mutable_report_html() = file.digest();
    if (file.path() != "report.json") continue;
    PTQ_ASSIGN_OR_RETURN(const ReadableFile blob,
                         context.blobs.OpenBlob(name.tenant, file.digest()));
    if (blob.size() > kMaxReportBytes) return absl::DataLossError("report.json is too large");
    std::string json(static_cast<size_t>(blob.size()), '\0');
    PTQ_RETURN_IF_ERROR(blob.ReadAt(0, json.data(), json.size()));
    if (Sha256Hex(json) != file.digest().hash()) {
      PTQ_RETURN_IF_ERROR(context.blobs.ReportDamage(file.digest()));
      return absl::DataLossError("the stored report.json is damaged");
    }
    PTQ_RETURN_IF_ERROR(FillReport(json, response));
  }
  return absl::OkStatus();
}

grpc::Status QuantizationServiceImpl::GetQuantizationReport(grpc::ServerContext*,
                                                            const v1::GetByName* request,
                                                            v1::QuantizationReport* response) {
  return ToGrpcStatus(Report(*request, *response));
}

absl::Status QuantizationServiceImpl::Artifacts(const v1::ListRequest& request,
                                                v1::ListArtifactsResponse& response) {
  PTQ_ASSIGN_OR_RETURN(const ResourceName name, ParseJobName(request.parent(), "parent"));
  PTQ_ASSIGN_OR_RETURN(const int page_size, PageSize(request));
  if (!request.filter().empty()) {
    return InvalidField("filter", "at position 1: this list has no filter");
  }
  PTQ_ASSIGN_OR_RETURN(const auto token, tokens_.Decode("artifacts", request));
  JobLedger& ledger = manager_.context().ledger;
  PTQ_ASSIGN_OR_RETURN(const JobRecord record, ledger.Get(name.tenant, name.id));
  if (record.job.state() != v1::QuantizationJob::SUCCEEDED) {
    return WrongState(request.parent(), "JOB_NOT_SUCCEEDED",
                      "only a SUCCEEDED job has artifacts; this one is " +
                          v1::QuantizationJob::State_Name(record.job.state()));
  }
  PTQ_ASSIGN_OR_RETURN(auto files, ledger.store().ListArtifacts(name.tenant, name.id,
                                                                token.value_or(""), page_size + 1));
  const bool more = static_cast<int>(files.size()) > page_size;
  if (more) files.pop_back();
  if (more) {
    response.set_next_page_token(tokens_.Encode("artifacts", request, files.back().path()));
  }
  for (v1::FileNode& file : files) *response.add_files() = std::move(file);
  return absl::OkStatus();
}

grpc::Status QuantizationServiceImpl::ListArtifacts(grpc::ServerContext*,
                                                    const v1::ListRequest* request,
                                                    v1::ListArtifactsResponse* response) {
  return ToGrpcStatus(Artifacts(*request, *response));
}

}  // namespace ptq
