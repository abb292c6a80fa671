// Filters: what is accepted, and that every refusal says where.
#include "server/store/list_filter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

TEST(ListFilterTest, AllThreeFieldsWithAnd) {
  PTQ_ASSERT_OK_AND_ASSIGN(
      const auto terms,
      ParseListFilter("state=RUNNING AND labels.team = \"a \\\"b\\\"\" AND "
                      "create_time>=\"2026-01-01T00:00:00Z\" AND labels.\"x y\"=z"));
  ASSERT_EQ(terms.size(), 4u);
  EXPECT_EQ(terms[0].field, FilterTerm::Field::kState);
  EXPECT_EQ(terms[0].text, "RUNNING");
  EXPECT_EQ(terms[0].position, 7u);
  EXPECT_EQ(terms[1].label, "team");
  EXPECT_EQ(terms[1].text, "a \"b\"");
  EXPECT_EQ(terms[2].op, FilterTerm::Operator::kGreaterOrEqual);
  EXPECT_EQ(absl::ToUnixSeconds(terms[2].time), 1767225600);
  EXPECT_EQ(terms[3].label, "x y");
}

TEST(ListFilterTest, EmptyHasNoTerms) {
  PTQ_ASSERT_OK_AND_ASSIGN(const auto terms, ParseListFilter("  "));
  EXPECT_TRUE(terms.empty());
}

struct BadFilter {
  std::string text;
  std::string where;
};

class BadFilterTest : public ::testing::TestWithParam<BadFilter> {};

TEST_P(BadFilterTest, NamesThePosition) {
  EXPECT_THAT(ParseListFilter(GetParam().text),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(GetParam().where)));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadFilterTest,
    ::testing::Values(BadFilter{"status = RUNNING", "position 1: expected state"},
                      BadFilter{"state RUNNING", "position 7: expected one of"},
                      BadFilter{"state > RUNNING", "position 7: only ="},
                      BadFilter{"state =", "position 8: expected a value"},
                      BadFilter{"state = A OR state = B", "position 11: expected AND"},
                      BadFilter{"state = A AND", "position 14: expected state"},
                      BadFilter{"labels.a = \"x", "position 12: the quote is not closed"},
                      BadFilter{"labels. = x", "position 1: expected"},
                      BadFilter{"labels.a = \"\\n\"", "position 14: only"},
                      BadFilter{"create_time < yesterday", "position 15: expected a time"},
                      BadFilter{"state = (A)", "position 9: expected a value"},
                      BadFilter{std::string(1025, ' '), "position 1025"}));

TEST(ListFilterTest, SixteenTermsAreTheMost) {
  std::string filter = "state=A";
  for (int i = 1; i < 16; ++i) filter += " AND state=A";
  EXPECT_THAT(ParseListFilter(filter), IsOk());
  EXPECT_THAT(ParseListFilter(filter + " AND state=A"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("more than 16")));
}

}  // namespace
}  // namespace ptq
