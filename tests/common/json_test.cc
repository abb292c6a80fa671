// The strict parser refuses what nlohmann-json's own lets through.
#include "common/json.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

void ExpectRefused(const std::string& text, const std::string& why) {
  EXPECT_THAT(ParseJson(text), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why)))
      << text;
}

TEST(JsonTest, KeepsValuesAndOrder) {
  PTQ_ASSERT_OK_AND_ASSIGN(const Json json,
                           ParseJson(R"({"b":[1,-2,3.5,null,true],"a":{"x":"ü"}})"));
  EXPECT_EQ(DumpJson(json), R"({"b":[1,-2,3.5,null,true],"a":{"x":"ü"}})");
}

TEST(JsonTest, RefusesRepeatedKeys) {
  ExpectRefused(R"({"a":1,"a":2})", "\"a\" is repeated");
  ExpectRefused(R"({"x":{"a":1,"b":2,"a":3}})", "\"a\" is repeated");
  EXPECT_THAT(ParseJson(R"([{"a":1},{"a":2}])"), IsOk());
}

TEST(JsonTest, RefusesIntegersBeyond64Bits) {
  ExpectRefused("[99999999999999999999]", "64 bits");
  EXPECT_THAT(ParseJson("[18446744073709551615]"), IsOk());
}

TEST(JsonTest, RefusesDepthBombs) { ExpectRefused(std::string(100, '['), "deeper"); }

TEST(JsonTest, RefusesZeroBytes) {
  ExpectRefused(std::string("{}\0{}", 5), "zero byte at byte 3");
  EXPECT_THAT(ParseJson(R"({"a":"\u0000"})"), IsOk());
}

TEST(JsonTest, RefusesSyntaxErrorsTrailingBytesAndBadUtf8) {
  ExpectRefused("", "JSON");
  ExpectRefused("{\"a\":1} x", "byte");
  ExpectRefused("[1,]", "byte");
  ExpectRefused("[\"\xff\"]", "JSON");
  ExpectRefused("[1e999]", "");
}

TEST(JsonTest, FieldsNameThemselves) {
  PTQ_ASSERT_OK_AND_ASSIGN(const Json json, ParseJson(R"({"n":3,"s":"x","f":0.5,"b":true})"));
  EXPECT_EQ(*JsonInt(json, "n"), 3);
  EXPECT_EQ(*JsonInt(json, "none", 7), 7);
  EXPECT_EQ(*JsonDouble(json, "f"), 0.5);
  EXPECT_THAT(JsonInt(json, "s"), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("\"s\"")));
  EXPECT_THAT(JsonString(json, "n"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("\"n\"")));
}

TEST(Utf8Test, AcceptsUnicodeAndRefusesOverlongFormsAndSurrogates) {
  EXPECT_TRUE(IsValidUtf8("a\xc3\xbc\xe2\x82\xac\xf0\x9f\x98\x80"));
  for (const char* bad :
       {"\xff", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xc3"}) {
    EXPECT_FALSE(IsValidUtf8(bad));
  }
}

}  // namespace
}  // namespace ptq
