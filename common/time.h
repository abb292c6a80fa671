// Wall-clock times as RFC 3339 text, the form that all our JSON uses.
#ifndef PTQ_COMMON_TIME_H_
#define PTQ_COMMON_TIME_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace ptq {

// "2026-11-22T17:40:27.123456Z".
std::string FormatRfc3339(absl::Time time);
absl::StatusOr<absl::Time> ParseRfc3339(const std::string& text);

}  // namespace ptq

#endif  // PTQ_COMMON_TIME_H_
