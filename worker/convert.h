// `ptq-worker convert`: from a quantized folder, of whatever program, to other formats.
#ifndef PTQ_WORKER_CONVERT_H_
#define PTQ_WORKER_CONVERT_H_

#include <string>
#include <vector>

#include "common/cancellation.h"
#include "worker/event_writer.h"

namespace ptq {

struct ConvertOptions {
  std::string from;                  // a folder of any format that can be read
  std::string output;                // absent or empty
  std::vector<std::string> formats;  // as ParseOutputFormats gives them
};

// Reads the folder's records and writes each format as a job does: nothing is quantized again.
// Tells the same events, and exits as RunJob does: kExitBadSpec where a folder can't be used, or a
// format can't hold the values exactly; then, as after any failure, the output folder is left
// empty.
int RunConvert(const ConvertOptions& options, EventWriter& events, const CancellationToken& cancel);

}  // namespace ptq

#endif  // PTQ_WORKER_CONVERT_H_
