// The folder that a result is downloaded into: absent, empty, or a partial download of the same
// job.
#ifndef PTQ_CLIENT_OUTPUT_FOLDER_H_
#define PTQ_CLIENT_OUTPUT_FOLDER_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ptq {

// Names the job while its download is incomplete.
inline constexpr char kDownloadMarker[] = ".ptq-download.json";

// The job whose partial download `folder` holds; "" if it is absent or empty. kInvalidArgument for
// a file, or a folder with anything else in it: nothing of the user's is ever overwritten.
absl::StatusOr<std::string> PartialDownloadIn(const std::string& folder);

// OK if `job` may be downloaded into `folder`. kInvalidArgument saying what to do otherwise.
absl::Status CheckOutputFolder(const std::string& folder, const std::string& job);

// Creates `folder` with the marker for `job`, which must pass CheckOutputFolder; and the removal of
// the marker, which makes the download complete.
absl::Status BeginDownload(const std::string& folder, const std::string& job);
absl::Status CompleteDownload(const std::string& folder);

}  // namespace ptq

#endif  // PTQ_CLIENT_OUTPUT_FOLDER_H_
