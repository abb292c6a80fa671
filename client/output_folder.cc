#include "client/output_folder.h"

#include <errno.h>
#include <unistd.h>

#include <vector>

#include "client/exit_status.h"
#include "client/resource_names.h"
#include "common/file.h"
#include "common/json.h"
#include "common/status_macros.h"

namespace ptq {

absl::StatusOr<std::string> PartialDownloadIn(const std::string& folder) {
  if (!PathExists(folder)) return std::string();
  if (!IsDirectory(folder)) {
    return absl::InvalidArgumentError(folder + ": is a file; name a new or empty folder");
  }
  auto entries = ListDirectory(folder);
  if (!entries.ok()) return LocalError(entries.status());
  if (entries->empty()) return std::string();
  const auto text = ReadFile(JoinPath(folder, kDownloadMarker), 1 << 20);
  if (text.ok()) {
    const auto json = ParseJson(*text);
    if (json.ok()) {
      const auto job = JsonString(*json, "job");
      if (job.ok() && !job->empty()) return *job;
    }
  }
  return absl::InvalidArgumentError(folder +
                                    ": is not empty; name a new or empty folder for the result");
}

absl::Status CheckOutputFolder(const std::string& folder, const std::string& job) {
  PTQ_ASSIGN_OR_RETURN(const auto partial, PartialDownloadIn(folder));
  if (partial.empty() || partial == job) return absl::OkStatus();
  return absl::InvalidArgumentError(
      folder + ": holds a part of another job's result; finish it with `ptq download " +
      ShortName(partial) + " " + folder + "`, or name another folder");
}

absl::Status BeginDownload(const std::string& folder, const std::string& job) {
  PTQ_RETURN_IF_ERROR(CheckOutputFolder(folder, job));
  PTQ_RETURN_IF_ERROR(LocalError(MakeDirectories(folder)));
  const std::string marker = JoinPath(folder, kDownloadMarker);
  if (PathExists(marker)) return absl::OkStatus();
  return LocalError(WriteFileAtomically(marker, DumpJsonPretty(Json{{"job", job}})));
}

absl::Status CompleteDownload(const std::string& folder) {
  const std::string marker = JoinPath(folder, kDownloadMarker);
  if (::unlink(marker.c_str()) != 0 && errno != ENOENT) {
    return LocalError(ErrnoStatus(errno, marker));
  }
  return LocalError(SyncDirectory(folder));
}

}  // namespace ptq
