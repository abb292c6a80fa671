// Known answers of FIPS 180-4, and that a file gives what its bytes give.
#include "common/sha256.h"

#include <gtest/gtest.h>

#include <string>

#include "common/file.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

constexpr char kAbc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

TEST(Sha256Test, KnownAnswers) {
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"), kAbc);
}

TEST(Sha256Test, PiecesGiveTheWhole) {
  Sha256 digest;
  digest.Update("a");
  digest.Update("bc");
  EXPECT_EQ(digest.FinishHex(), kAbc);
  digest.Update("abc");
  EXPECT_EQ(digest.FinishHex(), kAbc) << "FinishHex starts over";
}

TEST(Sha256Test, FileLargerThanOnePiece) {
  const std::string path = ::testing::TempDir() + "/sha256_test.bin";
  const std::string data((1 << 20) + 17, 'x');
  ASSERT_THAT(WriteFileAtomically(path, data), testing::IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string digest, Sha256File(path));
  EXPECT_EQ(digest, Sha256Hex(data));
}

TEST(Sha256Test, HexDigits) {
  EXPECT_TRUE(IsSha256Hex(kAbc));
  EXPECT_FALSE(IsSha256Hex(std::string(64, 'G')));
  EXPECT_FALSE(IsSha256Hex("abc"));
}

}  // namespace
}  // namespace ptq
