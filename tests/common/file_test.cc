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

TEST_F(FileTest, ManyAppendsOfAnySizeMakeOneFile) {
  // On both sides of the steps in which bytes are sent to the disk.
  std::string expected;
  {
    PTQ_ASSERT_OK_AND_ASSIGN(auto writer, AtomicFileWriter::Create(folder_ + "/a"));
    for (const size_t size : {1u, (8u << 20) - 1, 1u, 3u, 20u << 20, 0u, 5u << 20}) {
      const std::string piece(size, static_cast<char>('a' + expected.size() % 26));
      ASSERT_THAT(writer.Append(piece), IsOk());
      expected += piece;
    }
    ASSERT_THAT(writer.Sync(), IsOk());
    ASSERT_THAT(writer.Append("end"), IsOk());
    ASSERT_THAT(writer.Commit(), IsOk());
  }
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string data, ReadFile(folder_ + "/a"));
  EXPECT_TRUE(data == expected + "end");
}

TEST_F(FileTest, AScratchFileHasNoNameAndKeepsWhatItIsGiven) {
  PTQ_ASSERT_OK_AND_ASSIGN(const auto scratch, ScratchFile::Create(folder_));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto names, ListDirectory(folder_));
  EXPECT_TRUE(names.empty());
  ASSERT_THAT(scratch.WriteAt(5, "world", 5), IsOk());
  ASSERT_THAT(scratch.WriteAt(0, "hello", 5), IsOk());
  char data[10];
  ASSERT_THAT(scratch.ReadAt(0, data, sizeof(data)), IsOk());
  EXPECT_EQ(std::string(data, sizeof(data)), "helloworld");
  EXPECT_THAT(scratch.ReadAt(8, data, 5), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("ends")));
  EXPECT_THAT(ScratchFile::Create(folder_ + "/none"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
}

TEST_F(FileTest, AStampTellsWhetherAFileIsTheSame) {
  const std::string path = folder_ + "/a";
  ASSERT_THAT(WriteFileAtomically(path, "one"), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(const FileStamp first, StampOf(path));
  PTQ_ASSERT_OK_AND_ASSIGN(const FileStamp again, StampOf(path));
  EXPECT_EQ(first, again);
  EXPECT_EQ(first.size, 3);
  ASSERT_THAT(WriteFileAtomically(path, "two"), IsOk());  // another file of that name
  PTQ_ASSERT_OK_AND_ASSIGN(const FileStamp replaced, StampOf(path));
  EXPECT_NE(first, replaced);
  EXPECT_THAT(StampOf(folder_ + "/none"), StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
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
