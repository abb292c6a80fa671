// Matchers for absl::Status and absl::StatusOr with Abseil's later names (not in Debian's release).
#ifndef PTQ_TESTS_TESTING_STATUS_MATCHERS_H_
#define PTQ_TESTS_TESTING_STATUS_MATCHERS_H_

#include <gmock/gmock.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ptq::testing {

inline const absl::Status& GetStatus(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& GetStatus(const absl::StatusOr<T>& status_or) {
  return status_or.status();
}

MATCHER(IsOk, "is OK") {
  *result_listener << GetStatus(arg).ToString();
  return GetStatus(arg).ok();
}

// StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bits")).
MATCHER_P2(StatusIs, code, message_matcher, "") {
  const absl::Status& status = GetStatus(arg);
  *result_listener << status.ToString();
  return status.code() == code &&
         ::testing::SafeMatcherCast<std::string>(message_matcher)
             .Matches(std::string(status.message().data(), status.message().size()));
}

}  // namespace ptq::testing

// Asserts that a StatusOr is OK and moves its value into `lhs`.
#define PTQ_ASSERT_OK_AND_ASSIGN(lhs, expr) \
  PTQ_ASSERT_OK_IMPL(PTQ_TEST_CONCAT(ptq_test_status_or_, __LINE__), lhs, expr)
#define PTQ_TEST_CONCAT_INNER(a, b) a##b
#define PTQ_TEST_CONCAT(a, b) PTQ_TEST_CONCAT_INNER(a, b)
#define PTQ_ASSERT_OK_IMPL(tmp, lhs, expr)          \
  auto tmp = (expr);                                \
  ASSERT_TRUE(tmp.ok()) << tmp.status().ToString(); \
  lhs = std::move(tmp).value()

#endif  // PTQ_TESTS_TESTING_STATUS_MATCHERS_H_
