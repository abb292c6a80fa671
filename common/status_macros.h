// Early return on errors, as Abseil's own (not yet in Debian's release) spells it.
#ifndef PTQ_COMMON_STATUS_MACROS_H_
#define PTQ_COMMON_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define PTQ_MACRO_CONCAT_INNER(a, b) a##b
#define PTQ_MACRO_CONCAT(a, b) PTQ_MACRO_CONCAT_INNER(a, b)

// Returns from the enclosing function if `expr`, an absl::Status, is an error.
#define PTQ_RETURN_IF_ERROR(expr)                             \
  do {                                                        \
    if (absl::Status ptq_status = (expr); !ptq_status.ok()) { \
      return ptq_status;                                      \
    }                                                         \
  } while (false)

// PTQ_ASSIGN_OR_RETURN(auto x, F()): x is the value, or the enclosing function returns the error.
// A type with a comma needs parentheses around the declaration's own line: use `auto`.
#define PTQ_ASSIGN_OR_RETURN(lhs, expr) \
  PTQ_ASSIGN_OR_RETURN_IMPL(PTQ_MACRO_CONCAT(ptq_status_or_, __LINE__), lhs, expr)
#define PTQ_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                              \
  if (!tmp.ok()) {                                \
    return tmp.status();                          \
  }                                               \
  lhs = std::move(tmp).value()

#endif  // PTQ_COMMON_STATUS_MACROS_H_
