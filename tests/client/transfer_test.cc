// Uploads and downloads across broken connections and damaged bytes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "client/downloader.h"
#include "client/exit_status.h"
#include "client/output_folder.h"
#include "client/uploader.h"
#include "common/sha256.h"
#include "tests/client/fake_server.h"
#include "tests/client/recording_observer.h"
#include "tests/client/scratch_folder.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::ptq::testing::FakeServer;
using ::ptq::testing::IsOk;
using ::ptq::testing::kJob;
using ::ptq::testing::RecordingObserver;
using ::ptq::testing::ScratchFolder;
using ::ptq::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

std::string Bytes(size_t size) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i * 131 + i / 251);
  return bytes;
}

class UploaderTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::vector<v1::FileNode>> Upload(const std::vector<LocalFile>& files,
                                                   const std::string& client_id = "me") {
    Uploader uploader(server_.client(), observer_, {"tenants/default", client_id, 1000});
    return uploader.Upload(files, "model");
  }

  ScratchFolder folder_;
  FakeServer server_;
  RecordingObserver observer_;
};

TEST_F(UploaderTest, SendsWhatTheServerLacksAndNamesEverything) {
  const std::string known = Bytes(1500);
  server_.state().blobs[Sha256Hex(known)] = known;
  const std::string fresh = Bytes(2500);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto nodes, Upload({{"a", folder_.Write("a", known)},
                                                     {"b", folder_.Write("b", fresh)}}));
  ASSERT_THAT(nodes, SizeIs(2));
  EXPECT_EQ(nodes[0].path(), "a");
  EXPECT_EQ(nodes[1].digest().hash(), Sha256Hex(fresh));
  EXPECT_EQ(nodes[1].digest().size_bytes(), 2500);
  EXPECT_EQ(server_.state().blobs[Sha256Hex(fresh)], fresh);
  EXPECT_THAT(server_.state().upload_names, SizeIs(1));
  EXPECT_EQ(observer_.done, 2500);
}

TEST_F(UploaderTest, ASecondUploadSendsNothing) {
  const LocalFile file{"a", folder_.Write("a", Bytes(100))};
  ASSERT_THAT(Upload({file}), IsOk());
  ASSERT_THAT(Upload({file}), IsOk());
  EXPECT_THAT(server_.state().upload_names, SizeIs(1));
  EXPECT_THAT(observer_.notes, ElementsAre(HasSubstr("already has model")));
}

TEST_F(UploaderTest, AnEmptyFileAndEqualFilesAreOneBlobEach) {
  ASSERT_THAT(Upload({{"a", folder_.Write("a", "")},
                      {"b", folder_.Write("b", "same")},
                      {"c", folder_.Write("c", "same")}}),
              IsOk());
  EXPECT_THAT(server_.state().blobs, SizeIs(2));
  EXPECT_THAT(server_.state().upload_names, SizeIs(2));
}

TEST_F(UploaderTest, ABrokenConnectionIsResumedAtTheServersOffset) {
  server_.state().break_write_after = 3000;
  const std::string bytes = Bytes(10'500);
  ASSERT_THAT(Upload({{"a", folder_.Write("a", bytes)}}), IsOk());
  EXPECT_EQ(server_.state().blobs[Sha256Hex(bytes)], bytes);
  EXPECT_THAT(server_.state().write_offsets, ElementsAre(0, 3000));
  EXPECT_EQ(observer_.done, 10'500);
}

TEST_F(UploaderTest, ALaterRunContinuesAnInterruptedOne) {
  const std::string bytes = Bytes(5000);
  const LocalFile file{"a", folder_.Write("a", bytes)};
  server_.state().break_write_after = 2000;
  server_.canceller().Cancel();
  // Interrupted after the break: what the first run sent stays under its stable name.
  server_.canceller().Reset();
  {
    RecordingObserver observer;
    QuantizationClient::Options options;
    options.retry.give_up_after = absl::ZeroDuration();
    ServiceStubs stubs = server_.Stubs();
    QuantizationClient impatient(stubs, server_.canceller(), options);
    Uploader uploader(impatient, observer, {"tenants/default", "me", 1000});
    EXPECT_THAT(uploader.Upload({file}, "model"),
                StatusIs(absl::StatusCode::kUnavailable, ::testing::_));
  }
  ASSERT_THAT(Upload({file}), IsOk());
  EXPECT_THAT(server_.state().write_offsets, ElementsAre(0, 2000));
  EXPECT_EQ(std::set<std::string>(server_.state().upload_names.begin(),
                                  server_.state().upload_names.end())
                .size(),
            1u);
}

TEST_F(UploaderTest, ABusyNameIsWaitedForAndThenReplaced) {
  server_.state().busy_writes = 6;
  ASSERT_THAT(Upload({{"a", folder_.Write("a", Bytes(100))}}), IsOk());
  EXPECT_EQ(server_.state().upload_names.front(), server_.state().upload_names[1]);
  EXPECT_NE(server_.state().upload_names.front(), server_.state().upload_names.back());
}

TEST_F(UploaderTest, ClientsDoNotWriteToEachOthersUploads) {
  ASSERT_THAT(Upload({{"a", folder_.Write("a", "1")}}, "me"), IsOk());
  server_.state().blobs.clear();
  server_.state().uploads.clear();
  ASSERT_THAT(Upload({{"a", folder_.Write("b", "1")}}, "you"), IsOk());
  EXPECT_NE(server_.state().upload_names[0], server_.state().upload_names[1]);
}

TEST_F(UploaderTest, AMissingFileIsALocalError) {
  const auto nodes = Upload({{"a", folder_.Path("absent")}});
  EXPECT_THAT(nodes, StatusIs(absl::StatusCode::kNotFound, HasSubstr("absent")));
  EXPECT_EQ(ExitStatusFor(nodes.status()), ExitStatus::kError);
}

TEST_F(UploaderTest, AnInterruptionEndsIt) {
  server_.canceller().Cancel();
  EXPECT_THAT(Upload({{"a", folder_.Write("a", Bytes(100))}}),
              StatusIs(absl::StatusCode::kCancelled, ::testing::_));
}

class DownloaderTest : public ::testing::Test {
 protected:
  absl::Status Download() {
    Downloader downloader(server_.client(), observer_);
    return downloader.DownloadJob(kJob, output_);
  }
  std::string Output(const std::string& name) {
    return ReadFile(JoinPath(output_, name)).value_or("(absent)");
  }

  ScratchFolder folder_;
  std::string output_ = folder_.Path("out");
  FakeServer server_;
  RecordingObserver observer_;
};

TEST_F(DownloaderTest, WritesEveryFileAndLeavesNothingElse) {
  server_.AddArtifact("config.json", "{}");
  server_.AddArtifact("sub/a.safetensors", Bytes(3500));
  server_.AddArtifact("empty.txt", "");
  ASSERT_THAT(Download(), IsOk());
  EXPECT_EQ(Output("sub/a.safetensors"), Bytes(3500));
  EXPECT_EQ(Output("empty.txt"), "");
  EXPECT_THAT(*ListDirectory(output_), ElementsAre("config.json", "empty.txt", "sub"));
  EXPECT_THAT(*ListDirectory(JoinPath(output_, "sub")), ElementsAre("a.safetensors"));
  EXPECT_EQ(observer_.done, 3502);
}

TEST_F(DownloaderTest, ABrokenConnectionContinuesAtTheOffset) {
  server_.AddArtifact("a", Bytes(9500));
  server_.state().break_read_after = 4000;
  ASSERT_THAT(Download(), IsOk());
  EXPECT_EQ(Output("a"), Bytes(9500));
  EXPECT_THAT(server_.state().read_offsets, ElementsAre(0, 4000));
}

TEST_F(DownloaderTest, ALaterRunContinuesPartialFilesAndKeepsWholeOnes) {
  server_.AddArtifact("a", Bytes(1000));
  server_.AddArtifact("b", Bytes(5000));
  ASSERT_THAT(BeginDownload(output_, kJob), IsOk());
  folder_.Write("out/a", Bytes(1000));
  folder_.Write("out/b.part", Bytes(5000).substr(0, 2000));
  ASSERT_THAT(Download(), IsOk());
  EXPECT_EQ(Output("b"), Bytes(5000));
  EXPECT_THAT(server_.state().read_offsets, ElementsAre(2000));
  EXPECT_THAT(*ListDirectory(output_), ElementsAre("a", "b"));
}

TEST_F(DownloaderTest, ADamagedPartOfAnEarlierRunIsFetchedAgain) {
  server_.AddArtifact("a", Bytes(5000));
  ASSERT_THAT(BeginDownload(output_, kJob), IsOk());
  folder_.Write("out/a.part", std::string(2000, 'x'));
  ASSERT_THAT(Download(), IsOk());
  EXPECT_EQ(Output("a"), Bytes(5000));
  EXPECT_THAT(server_.state().read_offsets, ElementsAre(2000, 0));
}

TEST_F(DownloaderTest, BytesThatDoNotFitTheDigestAreRemovedAndReported) {
  server_.AddArtifact("a", Bytes(5000));
  server_.state().corrupt_reads = 1;
  const absl::Status status = Download();
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kDataLoss, HasSubstr("does not fit")));
  EXPECT_EQ(ExitStatusFor(status), ExitStatus::kError);
  EXPECT_FALSE(PathExists(JoinPath(output_, "a")));
  EXPECT_FALSE(PathExists(JoinPath(output_, "a.part")));
  // And the folder can be finished.
  ASSERT_THAT(Download(), IsOk());
  EXPECT_EQ(Output("a"), Bytes(5000));
}

TEST_F(DownloaderTest, UnsafeNamesAreRefusedBeforeAnythingIsWritten) {
  for (const std::string name : {"../evil", "/etc/x", "a/../../b", ".ptq-download.json"}) {
    SCOPED_TRACE(name);
    server_.state().artifacts.clear();
    server_.AddArtifact(name, "x");
    const absl::Status status = Download();
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInternal, HasSubstr(name)));
    EXPECT_EQ(ExitStatusFor(status), ExitStatus::kError);
    EXPECT_FALSE(PathExists(output_));
  }
}

TEST_F(DownloaderTest, AFullFolderIsNeverTouched) {
  server_.AddArtifact("a", "new");
  folder_.Write("out/a", "mine");
  const absl::Status status = Download();
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not empty")));
  EXPECT_EQ(ExitStatusFor(status), ExitStatus::kRefused);
  EXPECT_EQ(Output("a"), "mine");
  EXPECT_THAT(server_.state().read_offsets, IsEmpty());
}

TEST_F(DownloaderTest, AnotherJobsPartialDownloadIsRefusedWithTheCommandThatFinishesIt) {
  ASSERT_THAT(BeginDownload(output_, "tenants/default/quantizationJobs/other"), IsOk());
  server_.AddArtifact("a", "new");
  EXPECT_THAT(Download(), StatusIs(absl::StatusCode::kInvalidArgument,
                                   HasSubstr("`ptq download other " + output_ + "`")));
}

TEST_F(DownloaderTest, AServerThatStaysAwayIsReportedAndTheFolderContinuesLater) {
  server_.AddArtifact("a", Bytes(3000));
  server_.state().break_read_after = 1000;
  QuantizationClient::Options options;
  options.retry.give_up_after = absl::ZeroDuration();
  ServiceStubs stubs = server_.Stubs();
  QuantizationClient impatient(stubs, server_.canceller(), options);
  EXPECT_THAT(Downloader(impatient, observer_).DownloadJob(kJob, output_),
              StatusIs(absl::StatusCode::kUnavailable, ::testing::_));
  EXPECT_EQ(*PartialDownloadIn(output_), kJob);
  ASSERT_THAT(Download(), IsOk());
  EXPECT_THAT(server_.state().read_offsets, ElementsAre(0, 1000));
}

}  // namespace
}  // namespace ptq
