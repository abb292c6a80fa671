#include "server/jobs/input_registry.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "server/errors/status_details.h"
#include "server/store/proto_time.h"

namespace ptq {
namespace {

// The digest's first 128 bits: enough to be its own name.
std::string InputId(const ResolvedSource& source) {
  return source.root_digest.hash().substr(0, 32);
}

std::vector<std::string> BlobHashes(const ResolvedSource& source) {
  std::vector<std::string> hashes;
  for (const SourceFile& file : source.files) {
    if (!file.digest.hash().empty()) hashes.push_back(file.digest.hash());
  }
  return hashes;
}

// Microseconds are what the store keeps: a resource reads the same before and after.
absl::Time Now() { return absl::FromUnixMicros(absl::ToUnixMicros(absl::Now())); }

}  // namespace

class InputRegistry::LinkFolder {
 public:
  explicit LinkFolder(std::string path) : path_(std::move(path)) {}
  ~LinkFolder() { RemoveTree(path_).IgnoreError(); }
  LinkFolder(const LinkFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

absl::Status InputRegistry::Start() {
  PTQ_RETURN_IF_ERROR(RemoveTree(work_dir_));
  return MakeDirectories(work_dir_);
}

template <typename Inspection>
absl::StatusOr<Inspection> InputRegistry::InspectSource(
    const ResolvedSource& source, const std::string& shown_as,
    const std::function<absl::StatusOr<Inspection>(const std::string& folder)>& inspect) {
  LinkFolder folder(JoinPath(work_dir_, absl::StrFormat("inspect-%d", next_folder_++)));
  PTQ_RETURN_IF_ERROR(sources_.LinkInto(source, folder.path()));
  absl::StatusOr<Inspection> inspection = inspect(folder.path());
  if (inspection.ok()) return inspection;
  // Our own folder means nothing to the client.
  const std::string message = absl::StrReplaceAll(
      Message(inspection.status()), {{folder.path() + "/", shown_as.empty() ? "" : shown_as + "/"},
                                     {folder.path(), shown_as.empty() ? "the model" : shown_as}});
  const absl::StatusCode code = absl::IsNotFound(inspection.status())
                                    ? absl::StatusCode::kInvalidArgument
                                    : inspection.status().code();
  return WithReason(AtField(absl::Status(code, message), "source"), "INVALID_MODEL");
}

absl::StatusOr<v1::Model> InputRegistry::DescribeModel(const ResolvedSource& resolved,
                                                       const v1::Source& source) {
  const auto describe = [](const std::string& folder) -> absl::StatusOr<v1::Model> {
    v1::Model model;
    if (SaysQuantized(folder)) {
      PTQ_ASSIGN_OR_RETURN(const QuantizedModel quantized, InspectQuantizedModel(folder));
      model.set_quantized_format(quantized.format);
      model.set_architecture(quantized.architecture);
      model.set_block_count(static_cast<int32_t>(quantized.block_count));
      model.set_tensor_count(quantized.tensor_count);
      for (const std::string& warning : quantized.warnings) model.add_warnings(warning);
      return model;
    }
    PTQ_ASSIGN_OR_RETURN(const CheckpointInspection inspection, InspectCheckpoint(folder));
    model.set_architecture(inspection.config.architecture);
    model.set_block_count(static_cast<int32_t>(inspection.config.num_hidden_layers));
    model.set_tensor_count(static_cast<int64_t>(inspection.index.tensors().size()));
    for (const std::string& warning : inspection.warnings) model.add_warnings(warning);
    return model;
  };
  PTQ_ASSIGN_OR_RETURN(v1::Model model,
                       InspectSource<v1::Model>(resolved, source.server_path(), describe));
  *model.mutable_source() = source;
  model.set_size_bytes(resolved.size_bytes);
  *model.mutable_root_digest() = resolved.root_digest;
  return model;
}

absl::StatusOr<v1::Model> InputRegistry::CreateModel(const std::string& tenant,
                                                     const v1::Source& source, bool validate_only,
                                                     const std::optional<RequestKey>& request) {
  if (request.has_value()) {
    PTQ_ASSIGN_OR_RETURN(const auto earlier, store_.FindRequest(tenant, *request));
    if (earlier.has_value()) return GetModel(tenant, *earlier);
  }
  PTQ_ASSIGN_OR_RETURN(const ResolvedSource resolved,
                       sources_.Resolve(tenant, InputKind::kModel, source));
  PTQ_ASSIGN_OR_RETURN(v1::Model model, DescribeModel(resolved, source));
  const std::string id = InputId(resolved);
  const absl::Time now = Now();
  model.set_name("tenants/" + tenant + "/models/" + id);
  *model.mutable_create_time() = ToProtoTime(now);
  if (validate_only) return model;
  PTQ_RETURN_IF_ERROR(store_.InsertInput(
      {tenant, InputKind::kModel, id, model.SerializeAsString(), BlobHashes(resolved), now},
      request));
  return GetModel(tenant, id);
}

absl::StatusOr<v1::Dataset> InputRegistry::CreateDataset(const std::string& tenant,
                                                         const v1::Source& source,
                                                         bool validate_only,
                                                         const std::optional<RequestKey>& request) {
  if (request.has_value()) {
    PTQ_ASSIGN_OR_RETURN(const auto earlier, store_.FindRequest(tenant, *request));
    if (earlier.has_value()) return GetDataset(tenant, *earlier);
  }
  PTQ_ASSIGN_OR_RETURN(const ResolvedSource resolved,
                       sources_.Resolve(tenant, InputKind::kDataset, source));
  const SourceFile& file = resolved.files.front();
  auto inspection = InspectDataset(file.target, file.path);
  if (!inspection.ok()) {
    const std::string message =
        absl::StrReplaceAll(Message(inspection.status()), {{file.target, file.path}});
    return WithReason(AtField(absl::Status(inspection.status().code(), message), "source"),
                      "INVALID_DATASET");
  }
  const std::string id = InputId(resolved);
  const absl::Time now = Now();
  v1::Dataset dataset;
  dataset.set_name("tenants/" + tenant + "/datasets/" + id);
  *dataset.mutable_source() = source;
  dataset.set_document_count(inspection->documents);
  dataset.set_size_bytes(resolved.size_bytes);
  *dataset.mutable_root_digest() = resolved.root_digest;
  *dataset.mutable_create_time() = ToProtoTime(now);
  if (validate_only) return dataset;
  PTQ_RETURN_IF_ERROR(store_.InsertInput(
      {tenant, InputKind::kDataset, id, dataset.SerializeAsString(), BlobHashes(resolved), now},
      request));
  return GetDataset(tenant, id);
}

absl::StatusOr<v1::Model> InputRegistry::GetModel(const std::string& tenant,
                                                  const std::string& id) {
  auto record = store_.GetInput(tenant, InputKind::kModel, id);
  if (absl::IsNotFound(record.status())) {
    return ResourceNotFound("model", "tenants/" + tenant + "/models/" + id);
  }
  PTQ_RETURN_IF_ERROR(record.status());
  v1::Model model;
  if (!model.ParseFromString(record->payload)) return absl::DataLossError("model row is damaged");
  return model;
}

absl::StatusOr<v1::Dataset> InputRegistry::GetDataset(const std::string& tenant,
                                                      const std::string& id) {
  auto record = store_.GetInput(tenant, InputKind::kDataset, id);
  if (absl::IsNotFound(record.status())) {
    return ResourceNotFound("dataset", "tenants/" + tenant + "/datasets/" + id);
  }
  PTQ_RETURN_IF_ERROR(record.status());
  v1::Dataset dataset;
  if (!dataset.ParseFromString(record->payload)) {
    return absl::DataLossError("dataset row is damaged");
  }
  return dataset;
}

absl::StatusOr<CheckpointInspection> InputRegistry::Inspect(const std::string& tenant,
                                                            const v1::Model& model) {
  PTQ_ASSIGN_OR_RETURN(const ResolvedSource resolved,
                       sources_.Resolve(tenant, InputKind::kModel, model.source()));
  return InspectSource<CheckpointInspection>(resolved, model.source().server_path(),
                                             InspectCheckpoint);
}

absl::StatusOr<QuantizedModel> InputRegistry::InspectQuantized(const std::string& tenant,
                                                               const v1::Model& model) {
  PTQ_ASSIGN_OR_RETURN(const ResolvedSource resolved,
                       sources_.Resolve(tenant, InputKind::kModel, model.source()));
  return InspectSource<QuantizedModel>(resolved, model.source().server_path(),
                                       InspectQuantizedModel);
}

}  // namespace ptq
