// Codes keep their names both ways, and annotation keeps the code.
#include "common/status_util.h"

#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

TEST(StatusUtilTest, EveryCodeHasItsOwnName) {
  for (int code = 0; code <= 16; ++code) {
    const auto value = static_cast<absl::StatusCode>(code);
    EXPECT_EQ(StatusCodeFromName(StatusCodeName(value)), value) << code;
  }
  EXPECT_EQ(StatusCodeFromName("NOPE"), absl::StatusCode::kUnknown);
}

TEST(StatusUtilTest, AnnotateKeepsTheCodeAndPrefixesTheMessage) {
  EXPECT_THAT(Annotate(absl::NotFoundError("gone"), "block 3"),
              testing::StatusIs(absl::StatusCode::kNotFound, "block 3: gone"));
  EXPECT_THAT(Annotate(absl::OkStatus(), "block 3"), testing::IsOk());
}

}  // namespace
}  // namespace ptq
