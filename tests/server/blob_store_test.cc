// Uploads by offset, resumed from what was durable; digests and sizes that lie; damage that is
// found.
#include "server/blobs/blob_store.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "server/store/sqlite_job_store.h"
#include "tests/client/scratch_folder.h"
#include "tests/server/digest_of.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using testing::DigestOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::IsOk;
using ::testing::SizeIs;
using testing::StatusIs;

class BlobStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto index = SqliteJobStore::Open(folder_.Path("jobs.sqlite3"));
    ASSERT_THAT(index, IsOk());
    index_ = *std::move(index);
    auto store = BlobStore::Open(folder_.path(), *index_);
    ASSERT_THAT(store, IsOk());
    store_ = *std::move(store);
  }
  UploadName Name(const std::string& content, const std::string& uuid = "u") {
    return {"default", uuid, DigestOf(content)};
  }
  std::unique_ptr<BlobUpload> Begin(const UploadName& name) {
    auto upload = store_->BeginUpload(name);
    EXPECT_THAT(upload, IsOk());
    return upload.ok() ? *std::move(upload) : nullptr;
  }
  void Store(const std::string& content) {
    auto upload = Begin(Name(content));
    ASSERT_NE(upload, nullptr);
    ASSERT_THAT(upload->Append(0, content), IsOk());
    ASSERT_THAT(upload->Finish(), IsOk());
  }
  int64_t Committed(const UploadName& name) {
    const auto progress = store_->QueryUpload(name);
    EXPECT_THAT(progress, IsOk());
    return progress.ok() ? progress->committed_size : -1;
  }
  std::vector<std::string> UploadFiles() { return *ListDirectory(folder_.Path("uploads")); }

  testing::ScratchFolder folder_;
  std::unique_ptr<SqliteJobStore> index_;
  std::unique_ptr<BlobStore> store_;
};

TEST_F(BlobStoreTest, WhatWasSentCanBeRead) {
  Store("hello");
  PTQ_ASSERT_OK_AND_ASSIGN(const ReadableFile file, store_->OpenBlob("default", DigestOf("hello")));
  std::string bytes(5, '\0');
  ASSERT_THAT(file.ReadAt(0, bytes.data(), 5), IsOk());
  EXPECT_EQ(bytes, "hello");
  EXPECT_THAT(UploadFiles(), IsEmpty());
  PTQ_ASSERT_OK_AND_ASSIGN(const UploadProgress progress, store_->QueryUpload(Name("hello")));
  EXPECT_TRUE(progress.complete);
  EXPECT_EQ(progress.committed_size, 5);
}

TEST_F(BlobStoreTest, AnExistingBlobNeedsNoUpload) {
  Store("hello");
  EXPECT_EQ(Begin(Name("hello", "another")), nullptr);
}

TEST_F(BlobStoreTest, TheEmptyBlobIsABlob) {
  auto upload = Begin(Name(""));
  ASSERT_THAT(upload->Finish(), IsOk());
  EXPECT_THAT(store_->OpenBlob("default", DigestOf("")), IsOk());
}

TEST_F(BlobStoreTest, AnotherSizeIsAnotherBlob) {
  Store("hello");
  v1::Digest lie = DigestOf("hello");
  lie.set_size_bytes(6);
  EXPECT_THAT(store_->OpenBlob("default", lie),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("no blob")));
}

TEST_F(BlobStoreTest, AnUploadContinuesInANewStoreWithTheDigestOfAll) {
  const UploadName name = Name("hello world");
  {
    auto upload = Begin(name);
    ASSERT_THAT(upload->Append(0, "hello "), IsOk());
    EXPECT_EQ(upload->committed_size(), 0) << "nothing was synced yet";
  }
  EXPECT_EQ(Committed(name), 6);
  PTQ_ASSERT_OK_AND_ASSIGN(store_, BlobStore::Open(folder_.path(), *index_));
  EXPECT_EQ(Committed(name), 6);
  auto upload = Begin(name);
  // Two bytes again, which are skipped.
  ASSERT_THAT(upload->Append(4, "o world"), IsOk());
  ASSERT_THAT(upload->Finish(), IsOk());
  EXPECT_THAT(store_->VerifyBlob(name.digest, CancellationToken()), IsOk());
}

TEST_F(BlobStoreTest, BytesBeyondTheCommittedSizeAreNotTrustedAfterACrash) {
  const UploadName name = Name("hello world");
  {
    auto upload = Begin(name);
    ASSERT_THAT(upload->Append(0, "hello "), IsOk());
  }
  // What a power loss may leave: a longer file whose tail was never synced.
  std::string part;
  for (const std::string& file : UploadFiles()) {
    if (file.size() > 5 && file.substr(file.size() - 5) == ".part") part = file;
  }
  const int fd = ::open(folder_.Path("uploads/" + part).c_str(), O_WRONLY | O_APPEND);
  ASSERT_EQ(::write(fd, "XXX", 3), 3);
  ::close(fd);
  EXPECT_EQ(Committed(name), 6);
  auto upload = Begin(name);
  EXPECT_EQ(upload->written(), 6);
  ASSERT_THAT(upload->Append(6, "world"), IsOk());
  EXPECT_THAT(upload->Finish(), IsOk());
}

TEST_F(BlobStoreTest, AskingForTheStatusMakesAnOpenUploadDurable) {
  const UploadName name = Name("hello world");
  auto upload = Begin(name);
  EXPECT_EQ(Committed(name), 0);
  ASSERT_THAT(upload->Append(0, "hello"), IsOk());
  EXPECT_EQ(Committed(name), 5);
}

TEST_F(BlobStoreTest, AHoleIsOutOfRangeAndTheUploadLives) {
  const UploadName name = Name("hello");
  auto upload = Begin(name);
  ASSERT_THAT(upload->Append(0, "he"), IsOk());
  EXPECT_THAT(upload->Append(3, "lo"), StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("2")));
  EXPECT_THAT(upload->Append(-1, "x"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("negative")));
  ASSERT_THAT(upload->Append(2, "llo"), IsOk());
  EXPECT_THAT(upload->Finish(), IsOk());
}

TEST_F(BlobStoreTest, TooManyBytesDiscardTheUpload) {
  const UploadName name = Name("hello");
  auto upload = Begin(name);
  EXPECT_THAT(upload->Append(0, "hello!"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("more bytes than the 5")));
  upload.reset();
  EXPECT_EQ(Committed(name), 0);
  EXPECT_THAT(UploadFiles(), IsEmpty());
}

TEST_F(BlobStoreTest, TooFewBytesDiscardTheUpload) {
  const UploadName name = Name("hello");
  auto upload = Begin(name);
  ASSERT_THAT(upload->Append(0, "hell"), IsOk());
  EXPECT_THAT(upload->Finish(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("after 4 bytes")));
  EXPECT_THAT(UploadFiles(), IsEmpty());
}

TEST_F(BlobStoreTest, WrongBytesDiscardTheUpload) {
  const UploadName name = Name("hello");
  auto upload = Begin(name);
  ASSERT_THAT(upload->Append(0, "hullo"), IsOk());
  EXPECT_THAT(upload->Finish(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("SHA-256")));
  EXPECT_THAT(UploadFiles(), IsEmpty());
  EXPECT_THAT(store_->OpenBlob("default", name.digest),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("no blob")));
}

TEST_F(BlobStoreTest, ASecondWriterIsAbortedUntilTheFirstIsGone) {
  const UploadName name = Name("hello");
  auto first = Begin(name);
  EXPECT_THAT(store_->BeginUpload(name),
              StatusIs(absl::StatusCode::kAborted, HasSubstr("another stream")));
  first.reset();
  EXPECT_NE(Begin(name), nullptr);
}

TEST_F(BlobStoreTest, TwoUploadsOfOneBlobBothFinish) {
  auto first = Begin(Name("hello", "u1"));
  auto second = Begin(Name("hello", "u2"));
  for (auto* upload : {first.get(), second.get()}) {
    ASSERT_THAT(upload->Append(0, "hello"), IsOk());
  }
  EXPECT_THAT(first->Finish(), IsOk());
  EXPECT_THAT(second->Finish(), IsOk());
  EXPECT_THAT(store_->VerifyBlob(DigestOf("hello"), CancellationToken()), IsOk());
}

TEST_F(BlobStoreTest, AbandonedUploadsGoByAgeAndOpenOnesStay) {
  const UploadName left = Name("left behind");
  {
    auto upload = Begin(left);
    ASSERT_THAT(upload->Append(0, "left"), IsOk());
  }
  auto open = Begin(Name("open"));
  const absl::Time now = absl::Now();
  ASSERT_THAT(store_->CollectAbandonedUploads(now + absl::Hours(23), absl::Hours(24)), IsOk());
  EXPECT_EQ(Committed(left), 4);
  ASSERT_THAT(store_->CollectAbandonedUploads(now + absl::Hours(25), absl::Hours(24)), IsOk());
  EXPECT_EQ(Committed(left), 0);
  EXPECT_THAT(UploadFiles(), SizeIs(2)) << "the open upload's part and its committed size";
}

TEST_F(BlobStoreTest, ARottenBlobIsDataLossAndThenMissing) {
  Store("hello");
  const v1::Digest digest = DigestOf("hello");
  const std::string path = store_->PathOf(digest.hash());
  ::chmod(path.c_str(), 0644);
  const int fd = ::open(path.c_str(), O_WRONLY);
  ASSERT_EQ(::pwrite(fd, "j", 1, 0), 1);
  ::close(fd);
  EXPECT_THAT(store_->VerifyBlob(digest, CancellationToken()),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("damaged")));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto missing, store_->MissingBlobs("default", {digest}));
  EXPECT_THAT(missing, SizeIs(1));
  Store("hello");
  EXPECT_THAT(store_->VerifyBlob(digest, CancellationToken()), IsOk());
}

TEST_F(BlobStoreTest, AVanishedFileIsDataLoss) {
  Store("hello");
  ASSERT_EQ(::unlink(store_->PathOf(DigestOf("hello").hash()).c_str()), 0);
  EXPECT_THAT(store_->OpenBlob("default", DigestOf("hello")),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("gone")));
}

TEST_F(BlobStoreTest, StaleBlobsAreCollected) {
  Store("hello");
  ASSERT_THAT(store_->CollectStale(absl::Now() + absl::Hours(25), absl::Hours(24)), IsOk());
  EXPECT_FALSE(PathExists(store_->PathOf(DigestOf("hello").hash())));
}

TEST_F(BlobStoreTest, PublishedFilesAreBlobsOnceTheirRowsAre) {
  const std::string path = folder_.Write("result", "result bytes");
  const v1::Digest digest = DigestOf("result bytes");
  EXPECT_THAT(store_->Publish({{path, digest}}, [] { return absl::AbortedError("no rows"); }),
              StatusIs(absl::StatusCode::kAborted, HasSubstr("no rows")));
  EXPECT_THAT(store_->OpenBlob("default", digest),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("no blob")));
  ASSERT_THAT(store_->Publish({{path, digest}},
                              [&] { return index_->AddBlob("default", digest, absl::Now()); }),
              IsOk());
  EXPECT_THAT(store_->OpenBlob("default", digest), IsOk());
}

}  // namespace
}  // namespace ptq
