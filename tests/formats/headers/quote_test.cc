#include "formats/headers/quote.h"

#include <gtest/gtest.h>

#include <string>

#include "common/json.h"

namespace ptq {
namespace {

TEST(QuoteTest, EscapesWhatWouldBreakALineOrAProtobufString) {
  EXPECT_EQ(Quote("plain.weight"), "\"plain.weight\"");
  EXPECT_EQ(Quote("a\nb"), "\"a\\nb\"");
  EXPECT_EQ(Quote("größe"), "\"größe\"");
  EXPECT_EQ(Quote(std::string("\xff", 1)), "\"\\xff\"");
}

TEST(QuoteTest, CutsLongNamesBetweenCharacters) {
  for (size_t lead = 0; lead < 4; ++lead) {
    std::string text(lead, 'a');
    while (text.size() < 400) text += "\xF0\x9F\x98\x80";
    const std::string quoted = Quote(text);
    EXPECT_LT(quoted.size(), 210u) << lead;
    EXPECT_TRUE(IsValidUtf8(quoted)) << lead;
    EXPECT_NE(quoted.find("...\""), std::string::npos) << lead;
    EXPECT_EQ(quoted.find("\\x"), std::string::npos) << lead;
  }
}

TEST(QuoteTest, ListsNameAFewAndCountTheRest) {
  EXPECT_EQ(ListSome({"a", "b"}, 2), "a, b");
  EXPECT_EQ(ListSome({"a", "b", "c", "d"}, 2), "a, b and 2 more");
  EXPECT_EQ(ShapeToString({}), "[]");
  EXPECT_EQ(ShapeToString({2, 3}), "[2, 3]");
}

}  // namespace
}  // namespace ptq
