// What `quantize`, `submit` and `convert` are told on the command line, and the API's spelling of
// it.
#ifndef PTQ_CLIENT_JOB_FLAGS_H_
#define PTQ_CLIENT_JOB_FLAGS_H_

#include <CLI/App.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ptq/v1/quantization_service.pb.h"
#include "worker/spec/job_spec.h"

namespace ptq {

struct JobFlags {
  JobSpec spec;  // its model, calibration and evaluation are paths as given
  std::vector<std::string> labels;
  std::string request_id;  // UUID; "": a new one
  bool validate_only = false;
  bool no_reuse = false;
  bool server_path = false;
};

// Adds MODEL_DIR and all job flags; `flags` must outlive the parse.
void AddJobFlags(CLI::App& command, JobFlags& flags);

// The same for `convert`: MODEL, --format and the flags of any job.
void AddConversionFlags(CLI::App& command, JobFlags& flags);

// What can be checked without a server: ValidateJobSpec's ranges with the flags' names, labels, and
// the request id's form. kInvalidArgument.
absl::Status ValidateJobFlags(const JobFlags& flags);

// Names of the job's inputs on the server.
struct InputNames {
  std::string model;
  std::string calibration;  // "": none
  std::string evaluation;
};

// Every value is sent, defaults too: a job means the same whatever a later server's defaults are.
// kInvalidArgument for a malformed rule.
absl::StatusOr<v1::CreateQuantizationJobRequest> MakeJobRequest(const JobFlags& flags,
                                                                const InputNames& inputs);

}  // namespace ptq

#endif  // PTQ_CLIENT_JOB_FLAGS_H_
