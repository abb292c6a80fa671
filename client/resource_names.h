// The names that the API gives to jobs, blobs and uploads.
#ifndef PTQ_CLIENT_RESOURCE_NAMES_H_
#define PTQ_CLIENT_RESOURCE_NAMES_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace ptq {

// Whose jobs this client means when a name does not say it.
inline constexpr char kDefaultTenant[] = "tenants/default";

// A job as people type it, its full name "tenants/{tenant}/quantizationJobs/{job}" or the last part
// of that, as its full name. kInvalidArgument for anything else.
absl::StatusOr<std::string> ResolveJobName(const std::string& text);

// Whether `text` is a model's full name, "tenants/{tenant}/models/{model}".
bool IsModelName(const std::string& text);

// The last part of a name.
std::string ShortName(const std::string& name);

// "tenants/{tenant}" of a job's name.
std::string ParentOf(const std::string& job_name);

// "{parent}/blobs/{sha256}/{size}", which ByteStream.Read takes.
std::string BlobResourceName(const std::string& parent, const std::string& sha256,
                             int64_t size_bytes);

// "{parent}/uploads/{uuid}/blobs/{sha256}/{size}", which ByteStream.Write takes.
std::string UploadResourceName(const std::string& parent, const std::string& uuid,
                               const std::string& sha256, int64_t size_bytes);

// A UUID that is always the same for the same text, so that a second run continues an upload which
// a first one began.
std::string StableUuid(const std::string& text);
// A random UUID (version 4).
std::string RandomUuid();

}  // namespace ptq

#endif  // PTQ_CLIENT_RESOURCE_NAMES_H_
