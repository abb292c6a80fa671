#include "server/jobs/job_submission.h"

#include <sys/random.h>

#include <cctype>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/sha256.h"
#include "common/status_macros.h"
#include "formats/headers/tensor_table.h"
#include "server/errors/status_details.h"
#include "server/jobs/resource_names.h"
#include "server/jobs/spec_conversion.h"
#include "server/store/proto_time.h"
#include "worker/spec/job_spec.h"
#include "worker/spec/scheme_rules.h"

namespace ptq {
namespace {

constexpr int kMaxLabels = 64;
constexpr size_t kMaxLabelBytes = 63;

absl::Status CheckLabels(const google::protobuf::Map<std::string, std::string>& labels) {
  if (labels.size() > kMaxLabels) {
    return InvalidField(
        "labels", absl::StrFormat("%d labels; at most %d are accepted", labels.size(), kMaxLabels));
  }
  for (const auto& [key, value] : labels) {
    bool good = !key.empty() && key.size() <= kMaxLabelBytes;
    for (const char c : key) {
      good &= std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-' || c == '.' ||
              c == '/';
    }
    if (!good) {
      return InvalidField("labels", absl::StrFormat("a key has 1 to %d letters, digits, '_', '-', "
                                                    "'.' or '/'; this one has not: %s",
                                                    kMaxLabelBytes, key.substr(0, 100)));
    }
    if (value.size() > 4 * kMaxLabelBytes) {
      return InvalidField("labels", absl::StrFormat("the value of %s has more than %d bytes", key,
                                                    4 * kMaxLabelBytes));
    }
  }
  return absl::OkStatus();
}

// Twelve letters and digits, 60 bits.
absl::StatusOr<std::string> RandomJobId() {
  static constexpr char kAlphabet[] = "0123456789abcdefghjkmnpqrstvwxyz";
  unsigned char bytes[12];
  if (::getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes)) {
    return absl::InternalError("getrandom failed");
  }
  std::string id;
  for (const unsigned char byte : bytes) id.push_back(kAlphabet[byte & 31]);
  return id;
}

// The dataset that the spec names, checked against the model; an empty one if it names none.
absl::StatusOr<v1::Dataset> ResolveDataset(const std::string& tenant, const std::string& name,
                                           const std::string& field,
                                           const CheckpointInspection& model,
                                           InputRegistry& inputs) {
  v1::Dataset dataset;
  if (name.empty()) return dataset;
  PTQ_ASSIGN_OR_RETURN(const ResourceName parsed, ParseResourceName(name, "datasets", field));
  PTQ_ASSIGN_OR_RETURN(dataset, inputs.GetDataset(tenant, parsed.id));
  const std::string path = dataset.source().has_manifest()
                               ? dataset.source().manifest().files(0).path()
                               : dataset.source().server_path();
  if (!model.has_tokenizer && !absl::EndsWith(path, ".safetensors")) {
    return InvalidField(field,
                        "the model has no tokenizer.json, so text cannot be used; pass a "
                        ".safetensors file with integer input_ids [samples, length]");
  }
  return dataset;
}

// A name that people can use: the path as it was given, or the resource.
template <typename Resource>
std::string InputAsGiven(const Resource& resource) {
  return resource.source().has_server_path() ? resource.source().server_path() : resource.name();
}

v1::Digest ActionDigest(const JobSpec& spec, const v1::Model& model, const v1::Dataset& calibration,
                        const v1::Dataset& evaluation) {
  JobSpec by_content = spec;
  by_content.model = model.root_digest().hash();
  by_content.calibration = calibration.root_digest().hash();
  by_content.evaluation = evaluation.root_digest().hash();
  // The recipe's number of steps is the same work whether the spec names it or not.
  by_content.iterations = spec.EffectiveIterations();
  Json action = Json::object();
  action["engine_version"] = ServerVersion();
  action["spec"] = JobSpecToJson(by_content);
  const std::string text = DumpJson(action);
  v1::Digest digest;
  digest.set_hash(Sha256Hex(text));
  digest.set_size_bytes(static_cast<int64_t>(text.size()));
  return digest;
}

// What submission learns of a job's model and plan.
struct CheckedWork {
  int64_t blocks = 0;
  std::vector<std::string> warnings;
  v1::Dataset calibration;
  v1::Dataset evaluation;
};

absl::StatusOr<CheckedWork> CheckQuantization(const std::string& tenant, const JobSpec& spec,
                                              const v1::Model& model, InputRegistry& inputs) {
  if (!model.quantized_format().empty()) {
    return InvalidField(
        "spec.model",
        absl::StrFormat("the model is already quantized (%s): start from the original weights, or "
                        "write it in another format with `convert`",
                        model.quantized_format()));
  }
  CheckedWork work;
  PTQ_ASSIGN_OR_RETURN(const CheckpointInspection inspection, inputs.Inspect(tenant, model));
  PTQ_ASSIGN_OR_RETURN(
      work.calibration,
      ResolveDataset(tenant, spec.calibration, "spec.calibration_dataset", inspection, inputs));
  PTQ_ASSIGN_OR_RETURN(
      work.evaluation,
      ResolveDataset(tenant, spec.evaluation, "spec.evaluation_dataset", inspection, inputs));
  const auto schemes = ResolveSchemes(spec, BuildTensorTable(inspection.config));
  PTQ_RETURN_IF_ERROR(AtSpecField(schemes.status()));
  work.blocks = inspection.config.num_hidden_layers;
  work.warnings = inspection.warnings;
  PTQ_RETURN_IF_ERROR(AtSpecField(CheckLoadersTake(spec, *schemes, &work.warnings)));
  return work;
}

absl::StatusOr<CheckedWork> CheckConversionOf(const std::string& tenant, const JobSpec& spec,
                                              const v1::Model& model, InputRegistry& inputs) {
  if (model.quantized_format().empty()) {
    return InvalidField("spec.model",
                        "the model is not quantized, so there is nothing to convert: config.json "
                        "has no quantization_config and there is no .gguf file; quantize it first");
  }
  PTQ_ASSIGN_OR_RETURN(const QuantizedModel quantized, inputs.InspectQuantized(tenant, model));
  PTQ_RETURN_IF_ERROR(AtSpecField(CheckConversion(quantized, spec.format)));
  CheckedWork work;
  work.blocks = quantized.block_count;
  work.warnings = quantized.warnings;
  return work;
}

}  // namespace

const char* ServerVersion() { return PTQ_SERVER_VERSION; }

absl::StatusOr<JobRecord> MakeJobRecord(const std::string& tenant,
                                        const v1::CreateQuantizationJobRequest& request,
                                        InputRegistry& inputs) {
  PTQ_RETURN_IF_ERROR(CheckLabels(request.labels()));
  PTQ_ASSIGN_OR_RETURN(const JobSpec spec, ToJobSpec(request.spec()));
  PTQ_ASSIGN_OR_RETURN(const ResourceName model_name,
                       ParseResourceName(spec.model, "models", "spec.model"));
  PTQ_ASSIGN_OR_RETURN(const v1::Model model, inputs.GetModel(tenant, model_name.id));
  const auto check = spec.task == Task::kConvert ? CheckConversionOf : CheckQuantization;
  PTQ_ASSIGN_OR_RETURN(const CheckedWork work, check(tenant, spec, model, inputs));

  JobRecord record;
  record.tenant = tenant;
  PTQ_ASSIGN_OR_RETURN(record.id, RandomJobId());
  v1::QuantizationJob& job = record.job;
  job.set_name(MakeResourceName(tenant, "quantizationJobs", record.id));
  *job.mutable_spec() = request.spec();
  *job.mutable_labels() = request.labels();
  job.set_state(v1::QuantizationJob::QUEUED);
  job.set_attempt(1);
  job.mutable_progress()->set_blocks_total(static_cast<int32_t>(work.blocks));
  *job.mutable_action_digest() = ActionDigest(spec, model, work.calibration, work.evaluation);
  *job.mutable_create_time() = ToProtoTime(absl::Now());
  for (const std::string& warning : work.warnings) job.add_warnings(warning);
  JobSpec shown = spec;
  shown.model = InputAsGiven(model);
  if (!spec.calibration.empty()) shown.calibration = InputAsGiven(work.calibration);
  if (!spec.evaluation.empty()) shown.evaluation = InputAsGiven(work.evaluation);
  job.set_job_spec_json(DumpJson(JobSpecToJson(shown)));
  return record;
}

}  // namespace ptq
