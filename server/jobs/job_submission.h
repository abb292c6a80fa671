// Checks a request for a job and makes the record that the store keeps.
#ifndef PTQ_SERVER_JOBS_JOB_SUBMISSION_H_
#define PTQ_SERVER_JOBS_JOB_SUBMISSION_H_

#include <string>

#include "absl/status/statusor.h"
#include "ptq/v1/quantization_service.pb.h"
#include "server/jobs/input_registry.h"
#include "server/store/job_store.h"

namespace ptq {

// Everything that can be known without reading weights is checked here: the spec, the model's
// headers, the rules against its layers, the data's kind against the tokenizer. kInvalidArgument
// with the field's path; kNotFound for an input.
//
// The record is QUEUED, has an id, the spec as job.json and the action digest: SHA-256 over engine
// version, spec, and the root digests of the inputs. Two jobs with equal action digests have equal
// results.
absl::StatusOr<JobRecord> MakeJobRecord(const std::string& tenant,
                                        const v1::CreateQuantizationJobRequest& request,
                                        InputRegistry& inputs);

// "0.1.0".
const char* ServerVersion();

}  // namespace ptq

#endif  // PTQ_SERVER_JOBS_JOB_SUBMISSION_H_
