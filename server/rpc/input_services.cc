#include "server/rpc/input_services.h"

#include <string>
#include <utility>

#include "common/status_macros.h"
#include "server/errors/status_details.h"
#include "server/jobs/resource_names.h"
#include "server/rpc/grpc_status.h"
#include "server/rpc/request_key.h"

namespace ptq {
namespace {

// Lists what `kind` says; `add` gives the place for the next item.
template <typename Add>
absl::Status ListInputs(InputServiceContext& context, InputKind kind,
                        const v1::ListRequest& request, Add add, std::string* next_page_token) {
  PTQ_ASSIGN_OR_RETURN(const std::string tenant, ParseTenant(request.parent(), "parent"));
  if (!request.filter().empty()) {
    return InvalidField("filter", "at position 1: this list has no filter");
  }
  PTQ_ASSIGN_OR_RETURN(const int page_size, PageSize(request));
  const std::string method = InputCollection(kind);
  PTQ_ASSIGN_OR_RETURN(const auto token, context.tokens.Decode(method, request));
  std::optional<ListCursor> cursor;
  if (token.has_value()) {
    PTQ_ASSIGN_OR_RETURN(cursor, ParseCursor(*token));
  }
  PTQ_ASSIGN_OR_RETURN(auto records, context.store.ListInputs(tenant, kind, cursor, page_size + 1));
  const bool more = static_cast<int>(records.size()) > page_size;
  if (more) records.pop_back();
  for (const InputRecord& record : records) {
    if (!add()->ParseFromString(record.payload)) {
      return absl::DataLossError("the row of " + record.id + " is damaged");
    }
  }
  if (more) {
    *next_page_token = context.tokens.Encode(
        method, request, CursorText({records.back().create_time, records.back().id}));
  }
  return absl::OkStatus();
}

absl::Status DeleteInput(InputServiceContext& context, InputKind kind, const std::string& name) {
  PTQ_ASSIGN_OR_RETURN(const ResourceName parsed,
                       ParseResourceName(name, InputCollection(kind), "name"));
  const auto hashes = context.store.DeleteInput(parsed.tenant, kind, parsed.id);
  if (absl::IsNotFound(hashes.status())) {
    return ResourceNotFound(kind == InputKind::kModel ? "model" : "dataset", name);
  }
  PTQ_RETURN_IF_ERROR(hashes.status());
  return context.blobs.Collect(parsed.tenant, *hashes);
}

absl::StatusOr<v1::Model> CreateModelFor(InputServiceContext& context,
                                         const v1::CreateModelRequest& request) {
  PTQ_ASSIGN_OR_RETURN(const std::string tenant, ParseTenant(request.parent(), "parent"));
  PTQ_ASSIGN_OR_RETURN(const auto key, MakeRequestKey("CreateModel", request));
  return context.inputs.CreateModel(tenant, request.source(), request.validate_only(), key);
}

absl::StatusOr<v1::Dataset> CreateDatasetFor(InputServiceContext& context,
                                             const v1::CreateDatasetRequest& request) {
  PTQ_ASSIGN_OR_RETURN(const std::string tenant, ParseTenant(request.parent(), "parent"));
  PTQ_ASSIGN_OR_RETURN(const auto key, MakeRequestKey("CreateDataset", request));
  return context.inputs.CreateDataset(tenant, request.source(), request.validate_only(), key);
}

template <typename Message>
grpc::Status Reply(absl::StatusOr<Message> result, Message* response) {
  if (!result.ok()) return ToGrpcStatus(result.status());
  *response = *std::move(result);
  return grpc::Status::OK;
}

}  // namespace

grpc::Status ModelServiceImpl::CreateModel(grpc::ServerContext*,
                                           const v1::CreateModelRequest* request,
                                           v1::Model* response) {
  return Reply(CreateModelFor(context_, *request), response);
}

grpc::Status ModelServiceImpl::GetModel(grpc::ServerContext*, const v1::GetByName* request,
                                        v1::Model* response) {
  const auto name = ParseResourceName(request->name(), "models", "name");
  if (!name.ok()) return ToGrpcStatus(name.status());
  return Reply(context_.inputs.GetModel(name->tenant, name->id), response);
}

grpc::Status ModelServiceImpl::ListModels(grpc::ServerContext*, const v1::ListRequest* request,
                                          v1::ListModelsResponse* response) {
  return ToGrpcStatus(ListInputs(
      context_, InputKind::kModel, *request, [&] { return response->add_models(); },
      response->mutable_next_page_token()));
}

grpc::Status ModelServiceImpl::DeleteModel(grpc::ServerContext*, const v1::GetByName* request,
                                           google::protobuf::Empty*) {
  return ToGrpcStatus(DeleteInput(context_, InputKind::kModel, request->name()));
}

grpc::Status DatasetServiceImpl::CreateDataset(grpc::ServerContext*,
                                               const v1::CreateDatasetRequest* request,
                                               v1::Dataset* response) {
  return Reply(CreateDatasetFor(context_, *request), response);
}

grpc::Status DatasetServiceImpl::GetDataset(grpc::ServerContext*, const v1::GetByName* request,
                                            v1::Dataset* response) {
  const auto name = ParseResourceName(request->name(), "datasets", "name");
  if (!name.ok()) return ToGrpcStatus(name.status());
  return Reply(context_.inputs.GetDataset(name->tenant, name->id), response);
}

grpc::Status DatasetServiceImpl::ListDatasets(grpc::ServerContext*, const v1::ListRequest* request,
                                              v1::ListDatasetsResponse* response) {
  return ToGrpcStatus(ListInputs(
      context_, InputKind::kDataset, *request, [&] { return response->add_datasets(); },
      response->mutable_next_page_token()));
}

grpc::Status DatasetServiceImpl::DeleteDataset(grpc::ServerContext*, const v1::GetByName* request,
                                               google::protobuf::Empty*) {
  return ToGrpcStatus(DeleteInput(context_, InputKind::kDataset, request->name()));
}

}  // namespace ptq
