// Atomic writes leave a whole file or none, reads past the end are errors, hostile names are
// refused.
#include "common/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <string>

#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/file_test_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_THAT(RemoveTree(folder_), IsOk());
    ASSERT_THAT(MakeDirectories(folder_), IsOk());
  }
  std::string folder_;
};

TEST_F(FileTest, CommitPublishesWhatWasWritten) {
  ASSERT_THAT(WriteFileAtomically(folder_ + "/a", "hello"), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string data, ReadFile(folder_ + "/a"));
  EXPECT_EQ(data, "hello");
}

TEST_F(FileTest, WithoutCommitNothingIsLeft) {
  {
    PTQ_ASSERT_OK_AND_ASSIGN(auto writer, AtomicFileWriter::Create(folder_ + "/a"));
    ASSERT_THAT(writer.Append("half"), IsOk());
  }
  PTQ_ASSERT_OK_AND_ASSIGN(const auto names, ListDirectory(folder_));
  EXPECT_TRUE(names.empty());
}

TEST_F(FileTest, ReadingPastTheEndNamesTheFile) {
  ASSERT_THAT(WriteFileAtomically(folder_ + "/a", "12345"), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(auto file, ReadableFile::Open(folder_ + "/a"));
  char buffer[8];
  EXPECT_THAT(file.ReadAt(2, buffer, 8), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("/a")));
}

TEST_F(FileTest, MissingAndIrregularFiles) {
  EXPECT_THAT(ReadableFile::Open(folder_ + "/none"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
  EXPECT_THAT(ReadableFile::Open(folder_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("regular")));
  ASSERT_EQ(::mkfifo((folder_ + "/pipe").c_str(), 0600), 0);
  EXPECT_THAT(ReadableFile::Open(folder_ + "/pipe"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("regular")))
      << "and does not wait for a writer";
}

TEST_F(FileTest, ReadFileRefusesMoreThanItsLimit) {
  ASSERT_THAT(WriteFileAtomically(folder_ + "/a", "12345"), IsOk());
  EXPECT_THAT(ReadFile(folder_ + "/a", 4),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("5 bytes")));
}

TEST(SafeRelativePathTest, OnlyPlainComponents) {
  EXPECT_TRUE(IsSafeRelativePath("model.safetensors"));
  EXPECT_TRUE(IsSafeRelativePath("a/b.json"));
  for (const char* bad : {"", "/a", "../a", "a/../b", "a//b", "a/", "./a", "a\\b"}) {
    EXPECT_FALSE(IsSafeRelativePath(bad)) << bad;
  }
  EXPECT_FALSE(IsSafeRelativePath(std::string("a\0b", 3)));
  EXPECT_FALSE(IsSafeRelativePath(std::string(2000, 'a')));
}

}  // namespace
}  // namespace ptq
