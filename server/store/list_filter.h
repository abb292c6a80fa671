// The filter of list requests: a small, bounded part of AIP-160.
#ifndef PTQ_SERVER_STORE_LIST_FILTER_H_
#define PTQ_SERVER_STORE_LIST_FILTER_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace ptq {

// One comparison; all of a filter's terms must hold.
struct FilterTerm {
  enum class Field { kState, kLabel, kCreateTime };
  enum class Operator { kEqual, kLess, kLessOrEqual, kGreater, kGreaterOrEqual };

  Field field = Field::kState;
  Operator op = Operator::kEqual;  // states and labels: kEqual only
  std::string label;               // kLabel: its key
  std::string text;                // kState: an enum's name; kLabel: its value
  absl::Time time;                 // kCreateTime
  size_t position = 0;             // of the value in the filter, 1-based
};

// "state = RUNNING AND labels.team = "x" AND create_time > "2026-01-01T00:00:00Z"". A label's key
// may be quoted too. The empty filter has no terms. At most 1 KiB and 16 terms. kInvalidArgument
// with the field "filter", naming the 1-based position. Whether a state exists is the caller's to
// check (`position` is for its message).
absl::StatusOr<std::vector<FilterTerm>> ParseListFilter(const std::string& filter);

}  // namespace ptq

#endif  // PTQ_SERVER_STORE_LIST_FILTER_H_
