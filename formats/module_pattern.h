// How quantization_configs of other programs name modules: whole, or by Python's regular
// expressions.
#ifndef PTQ_FORMATS_MODULE_PATTERN_H_
#define PTQ_FORMATS_MODULE_PATTERN_H_

#include <string>

#include "absl/status/statusor.h"

namespace ptq {

// Python's re.match: from the name's beginning, not necessarily to its end. kInvalidArgument
// quoting a pattern that is none, or uses what RE2 lacks (lookahead).
absl::StatusOr<bool> MatchesBeginning(const std::string& pattern, const std::string& module);
// Python's re.search: anywhere.
absl::StatusOr<bool> MatchesAnywhere(const std::string& pattern, const std::string& module);
// "^model\.layers\.0$": this name and no other, for both.
std::string ExactPattern(const std::string& module);

}  // namespace ptq

#endif  // PTQ_FORMATS_MODULE_PATTERN_H_
