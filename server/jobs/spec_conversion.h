// QuantizationSpec, as it comes over the wire, into JobSpec, as the worker understands it.
#ifndef PTQ_SERVER_JOBS_SPEC_CONVERSION_H_
#define PTQ_SERVER_JOBS_SPEC_CONVERSION_H_

#include "absl/status/statusor.h"
#include "ptq/v1/quantization_spec.pb.h"
#include "worker/spec/job_spec.h"

namespace ptq {

// Unset fields take JobSpec's defaults; model, calibration and evaluation hold the resource names.
// Ranges are checked as ValidateJobSpec does. kInvalidArgument with the field's path in the
// request, "spec.scheme.bits".
absl::StatusOr<JobSpec> ToJobSpec(const v1::QuantizationSpec& spec);

// Adds the request's field path to an error of ValidateJobSpec or ResolveSchemes, whose message
// begins with the key of job.json.
absl::Status AtSpecField(const absl::Status& status);

}  // namespace ptq

#endif  // PTQ_SERVER_JOBS_SPEC_CONVERSION_H_
