// From a folder and a few files to a job on the server.
#ifndef PTQ_CLIENT_JOB_SUBMISSION_H_
#define PTQ_CLIENT_JOB_SUBMISSION_H_

#include "absl/status/statusor.h"
#include "client/job_flags.h"
#include "client/quantization_client.h"
#include "client/transfer_observer.h"

namespace ptq {

// Checks flags and headers, uploads what the server lacks (unless flags.server_path), registers the
// inputs and creates the job, or with validate_only the job as it would be. Whatever can be refused
// is refused before the large upload. Skipped files and the server's warnings are notes to
// `observer`.
absl::StatusOr<v1::QuantizationJob> SubmitJob(QuantizationClient& client, const JobFlags& flags,
                                              TransferObserver& observer);

// The worker's job.json of a job or a validated one, with the paths that the user gave as inputs.
absl::StatusOr<Json> JobSpecWithPaths(const v1::QuantizationJob& job, const JobFlags& flags);

}  // namespace ptq

#endif  // PTQ_CLIENT_JOB_SUBMISSION_H_
