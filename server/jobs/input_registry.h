// Models and datasets: checked when they are created, found again when jobs name them.
#ifndef PTQ_SERVER_JOBS_INPUT_REGISTRY_H_
#define PTQ_SERVER_JOBS_INPUT_REGISTRY_H_

#include <atomic>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "formats/headers/inspect.h"
#include "formats/headers/loader_rules/quantized_model.h"
#include "ptq/v1/dataset_service.pb.h"
#include "ptq/v1/model_service.pb.h"
#include "server/jobs/input_source.h"
#include "server/store/job_store.h"

namespace ptq {

// Thread-safe. Borrows must outlive it. `work_dir` is for short-lived folders of links; whatever is
// in it when the registry is made goes.
class InputRegistry {
 public:
  InputRegistry(std::string work_dir, JobStore& store, InputSources& sources)
      : work_dir_(std::move(work_dir)), store_(store), sources_(sources) {}

  // Empties and makes the work folder.
  absl::Status Start();

  // The same files give the same resource. With `validate_only` nothing is kept. Errors: those of
  // InputSources::Resolve and of formats/headers/inspect.h, about the field "source".
  absl::StatusOr<v1::Model> CreateModel(const std::string& tenant, const v1::Source& source,
                                        bool validate_only,
                                        const std::optional<RequestKey>& request);
  absl::StatusOr<v1::Dataset> CreateDataset(const std::string& tenant, const v1::Source& source,
                                            bool validate_only,
                                            const std::optional<RequestKey>& request);

  // kNotFound with ResourceInfo.
  absl::StatusOr<v1::Model> GetModel(const std::string& tenant, const std::string& id);
  absl::StatusOr<v1::Dataset> GetDataset(const std::string& tenant, const std::string& id);

  // Reads headers again, for what the stored resource does not say: of original weights, and of a
  // model that is quantized already (Model.quantized_format).
  absl::StatusOr<CheckpointInspection> Inspect(const std::string& tenant, const v1::Model& model);
  absl::StatusOr<QuantizedModel> InspectQuantized(const std::string& tenant,
                                                  const v1::Model& model);

  InputSources& sources() { return sources_; }

 private:
  // A folder of links that lives as long as this object.
  class LinkFolder;

  // What `inspect(folder)` says of a folder of links to the source's files, in the client's words.
  template <typename Inspection>
  absl::StatusOr<Inspection> InspectSource(
      const ResolvedSource& source, const std::string& shown_as,
      const std::function<absl::StatusOr<Inspection>(const std::string& folder)>& inspect);
  // A Model without a name.
  absl::StatusOr<v1::Model> DescribeModel(const ResolvedSource& resolved, const v1::Source& source);

  const std::string work_dir_;
  JobStore& store_;
  InputSources& sources_;
  std::atomic<int> next_folder_{0};
};

}  // namespace ptq

#endif  // PTQ_SERVER_JOBS_INPUT_REGISTRY_H_
