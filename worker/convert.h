// From a quantized model, of whatever program, to other formats: `ptq-worker convert`, and a job
// whose task that is.
#ifndef PTQ_WORKER_CONVERT_H_
#define PTQ_WORKER_CONVERT_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/cancellation.h"
#include "worker/event_writer.h"
#include "worker/spec/job_spec.h"

namespace ptq {

struct ConvertOptions {
  std::string from;    // a folder of any format that can be read, or a .gguf file
  std::string config;  // of a .gguf file: folder of its config.json; "": where it lies
  std::string output;  // absent or empty
  std::vector<std::string> formats;  // as ParseOutputFormats gives them
};

// Reads the folder's records and writes each format as a job does: nothing is quantized again.
// Tells the same events, and exits as RunJob does: kExitBadSpec where a folder can't be used, or a
// format can't hold the values exactly; then, as after any failure, the output folder is left
// empty.
int RunConvert(const ConvertOptions& options, EventWriter& events, const CancellationToken& cancel);

// The job `spec`, whose task is a conversion, in the folder `output`: the files that RunConvert
// writes, and the reports. Returns the result's digest. The folder of a run that was stopped is one
// in which the same job begins again; a finished result is taken as it is.
absl::StatusOr<std::string> RunConvertJob(const JobSpec& spec, const std::string& output,
                                          EventWriter& events, const CancellationToken& cancel);

}  // namespace ptq

#endif  // PTQ_WORKER_CONVERT_H_
