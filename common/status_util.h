// Context on the way up, and the names of the 17 canonical codes.
#ifndef PTQ_COMMON_STATUS_UTIL_H_
#define PTQ_COMMON_STATUS_UTIL_H_

#include <string>

#include "absl/status/status.h"

namespace ptq {

// `status` with "context: " before its message; OK stays OK.
absl::Status Annotate(const absl::Status& status, const std::string& context);

// "INVALID_ARGUMENT" and so on, as google.rpc.Code spells them.
std::string StatusCodeName(absl::StatusCode code);
// The inverse; kUnknown for a name that is none of the seventeen.
absl::StatusCode StatusCodeFromName(const std::string& name);

// The message as std::string (Debian's absl::string_view is not std's).
std::string Message(const absl::Status& status);

}  // namespace ptq

#endif  // PTQ_COMMON_STATUS_UTIL_H_
