#include "client/job_submission.h"

#include <algorithm>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/resource_names.h"
#include "client/rpc_status.h"
#include "client/uploader.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/headers/checkpoint_index.h"
#include "formats/headers/inspect.h"
#include "formats/headers/loader_rules/quantized_model.h"
#include "formats/headers/model_files.h"
#include "formats/headers/tensor_table.h"
#include "worker/spec/scheme_rules.h"

namespace ptq {
namespace {

constexpr size_t kMaxNamesInNote = 5;

std::string AbsolutePath(const std::string& path) {
  if (path.empty()) return path;
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  if (error) return path;
  std::string text = absolute.lexically_normal().string();
  if (text.size() > 1 && text.back() == '/') text.pop_back();
  return text;
}

// What the server would refuse after the upload, refused before it. A kind of model that only a
// newer server knows is left to the server.
absl::Status CheckModel(const JobSpec& spec) {
  if (spec.task == Task::kConvert) {
    const auto model = InspectQuantizedModel(spec.model);
    if (absl::IsUnimplemented(model.status())) return absl::OkStatus();
    PTQ_RETURN_IF_ERROR(model.status());
    const absl::Status status = CheckConversion(*model, spec.format);
    return status.ok() ? status : absl::Status(status.code(), WithFlagNames(Message(status)));
  }
  const auto inspection = InspectCheckpoint(spec.model);
  if (absl::IsUnimplemented(inspection.status())) return absl::OkStatus();
  PTQ_RETURN_IF_ERROR(inspection.status());
  const auto schemes = ResolveSchemes(spec, BuildTensorTable(inspection->config));
  if (!schemes.ok()) {
    return absl::Status(schemes.status().code(), WithFlagNames(Message(schemes.status())));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<LocalFile>> ModelFiles(const std::string& model,
                                                  TransferObserver& observer) {
  const std::string folder = ModelFolder(model);
  std::vector<std::string> skipped;
  PTQ_ASSIGN_OR_RETURN(const auto names, SelectModelFiles(model, &skipped));
  if (!skipped.empty()) {
    std::vector<std::string> shown(
        skipped.begin(),
        skipped.begin() + static_cast<ptrdiff_t>(std::min(skipped.size(), kMaxNamesInNote)));
    std::string note =
        absl::StrFormat("Skipped %d %s that no job needs: %s", skipped.size(),
                        skipped.size() == 1 ? "entry" : "entries", absl::StrJoin(shown, ", "));
    if (shown.size() < skipped.size()) {
      note += absl::StrFormat(" and %d more", skipped.size() - shown.size());
    }
    observer.OnNote(note + ".");
  }
  std::vector<LocalFile> files;
  for (const std::string& name : names) files.push_back({name, JoinPath(folder, name)});
  return files;
}

// Where the server finds one input: below a root of its own, or in what was just uploaded.
absl::StatusOr<v1::Source> MakeSource(const JobFlags& flags, const std::string& path,
                                      const std::vector<LocalFile>& files, Uploader& uploader) {
  v1::Source source;
  if (flags.server_path) {
    source.set_server_path(AbsolutePath(path));
    return source;
  }
  PTQ_ASSIGN_OR_RETURN(const auto nodes, uploader.Upload(files, BaseName(AbsolutePath(path))));
  for (const v1::FileNode& node : nodes) *source.mutable_manifest()->add_files() = node;
  return source;
}

absl::StatusOr<std::string> CreateDataset(QuantizationClient& client, const JobFlags& flags,
                                          const std::string& path, const std::string& flag,
                                          Uploader& uploader) {
  if (path.empty()) return std::string();
  if (!flags.server_path && !PathExists(path)) {
    return absl::InvalidArgumentError(flag + ": there is no file " + path);
  }
  v1::CreateDatasetRequest request;
  request.set_parent(kDefaultTenant);
  PTQ_ASSIGN_OR_RETURN(*request.mutable_source(),
                       MakeSource(flags, path, {{BaseName(AbsolutePath(path)), path}}, uploader));
  PTQ_ASSIGN_OR_RETURN(const auto dataset, client.CreateDataset(request));
  return dataset.name();
}

}  // namespace

absl::StatusOr<v1::QuantizationJob> SubmitJob(QuantizationClient& client, const JobFlags& flags,
                                              TransferObserver& observer) {
  PTQ_RETURN_IF_ERROR(ValidateJobFlags(flags));
  std::vector<LocalFile> model_files;
  const bool on_server = IsModelName(flags.spec.model) && !IsDirectory(flags.spec.model);
  if (!flags.server_path && !on_server) {
    if (!IsDirectory(ModelFolder(flags.spec.model))) {
      return absl::InvalidArgumentError("MODEL_DIR: there is no folder " + flags.spec.model);
    }
    PTQ_ASSIGN_OR_RETURN(model_files, ModelFiles(flags.spec.model, observer));
    PTQ_RETURN_IF_ERROR(CheckModel(flags.spec));
  }
  // Nobody should wait for hashing to learn that there is no server.
  PTQ_RETURN_IF_ERROR(client.GetCapabilities().status());

  Uploader uploader(client, observer, {kDefaultTenant, LocalClientId()});
  InputNames inputs;
  // The small inputs first: what is wrong with them is known before the model is on its way.
  PTQ_ASSIGN_OR_RETURN(inputs.calibration, CreateDataset(client, flags, flags.spec.calibration,
                                                         "--calibration", uploader));
  PTQ_ASSIGN_OR_RETURN(inputs.evaluation, CreateDataset(client, flags, flags.spec.evaluation,
                                                        "--evaluation", uploader));
  v1::Model created;
  if (on_server) {
    created.set_name(flags.spec.model);
  } else {
    v1::CreateModelRequest model;
    model.set_parent(kDefaultTenant);
    PTQ_ASSIGN_OR_RETURN(*model.mutable_source(),
                         MakeSource(flags, flags.spec.model, model_files, uploader));
    PTQ_ASSIGN_OR_RETURN(created, client.CreateModel(model));
  }
  for (const std::string& warning : created.warnings()) observer.OnNote("Note: " + warning);
  inputs.model = created.name();
  PTQ_ASSIGN_OR_RETURN(const auto request, MakeJobRequest(flags, inputs));
  PTQ_ASSIGN_OR_RETURN(const auto job, client.CreateJob(request));
  for (const std::string& warning : job.warnings()) {
    const auto& known = created.warnings();
    if (std::find(known.begin(), known.end(), warning) == known.end()) {
      observer.OnNote("Note: " + warning);
    }
  }
  return job;
}

absl::StatusOr<Json> JobSpecWithPaths(const v1::QuantizationJob& job, const JobFlags& flags) {
  PTQ_ASSIGN_OR_RETURN(auto spec, ParseJson(job.job_spec_json()));
  spec["model"] = AbsolutePath(flags.spec.model);
  if (flags.spec.task == Task::kConvert) return spec;
  spec["calibration"] = AbsolutePath(flags.spec.calibration);
  spec["evaluation"] = AbsolutePath(flags.spec.evaluation);
  return spec;
}

}  // namespace ptq
