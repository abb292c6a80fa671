// Output formats out of a quantized checkpoint: the end of a job, and all of a conversion.
#ifndef PTQ_WORKER_EXPORT_FORMATS_H_
#define PTQ_WORKER_EXPORT_FORMATS_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/cancellation.h"
#include "formats/hashing_writer.h"
#include "formats/quantized_checkpoint.h"
#include "worker/file_digest.h"

namespace ptq {

// Where one of the `formats` lies in the output `folder`: in the folder itself if it is the only
// one, else in a folder of its name.
std::string FormatFolder(const std::string& folder, const std::vector<std::string>& formats,
                         const std::string& format);

// Writes all `formats` but those in `present`, one after the other, each into its folder. A folder
// of its name is emptied first: what an interrupted run left there is never taken for a whole.
// `progress` is told of fractions. Digests by path in `folder`; errors are
// CheckpointFormat::Write's.
absl::StatusOr<FileDigests> ExportFormats(const QuantizedCheckpoint& checkpoint,
                                          const std::vector<std::string>& formats,
                                          const std::vector<std::string>& present,
                                          const std::string& folder,
                                          const CancellationToken& cancel,
                                          const std::function<void(double)>& progress);

// The files of a result folder, and of the folders in it: paths relative to it, sorted. Hidden
// entries and reports are left out. Those that `known` has no digest of are read.
absl::StatusOr<std::vector<FileDigest>> DigestResultFiles(const std::string& folder,
                                                          const FileDigests& known,
                                                          const CancellationToken& cancel);

}  // namespace ptq

#endif  // PTQ_WORKER_EXPORT_FORMATS_H_
