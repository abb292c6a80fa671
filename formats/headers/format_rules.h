// What each output format can hold, as far as schemes and shapes tell: said at submission, by ptq,
// ptqd and ptq-worker alike. What only the records tell is refused when they are written.
#ifndef PTQ_FORMATS_HEADERS_FORMAT_RULES_H_
#define PTQ_FORMATS_HEADERS_FORMAT_RULES_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "formats/headers/planned_module.h"

namespace ptq {

// kFailedPrecondition naming the module, what stands in the way, and a format that can hold it. A
// format that is not named here holds everything.
absl::Status CheckFormatHolds(const std::string& format, const std::vector<PlannedModule>& modules);

// The layouts that auto-round's format has: GPTQ's for symmetric models, AWQ's for 4 bits with zero
// points, and GPTQ's with true zero points for the rest.
enum class AutoRoundLayout { kGptq, kAwq, kTrueZeros };
AutoRoundLayout AutoRoundLayoutOf(const std::vector<PlannedModule>& modules);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_FORMAT_RULES_H_
