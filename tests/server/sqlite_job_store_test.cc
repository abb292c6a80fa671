// Rows survive a new connection, changes are whole, references keep blobs alive, requests are
// remembered.
#include "server/store/sqlite_job_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/sha256.h"
#include "server/store/proto_time.h"
#include "tests/client/scratch_folder.h"
#include "tests/server/digest_of.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using testing::DigestOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::IsOk;
using testing::StatusIs;

const absl::Time kNow = absl::FromUnixSeconds(1'800'000'000);

v1::FileNode MakeFile(const std::string& path, const std::string& content) {
  v1::FileNode file;
  file.set_path(path);
  *file.mutable_digest() = DigestOf(content);
  return file;
}

v1::JobEvent MakeEvent(int64_t sequence) {
  v1::JobEvent event;
  event.set_sequence(sequence);
  event.mutable_block()->set_block(static_cast<int32_t>(sequence));
  return event;
}

JobRecord MakeJob(const std::string& id, int64_t second = 0) {
  JobRecord record;
  record.tenant = "default";
  record.id = id;
  record.job.set_name("tenants/default/quantizationJobs/" + id);
  record.job.set_state(v1::QuantizationJob::QUEUED);
  *record.job.mutable_create_time() = ToProtoTime(kNow + absl::Seconds(second));
  return record;
}

class SqliteJobStoreTest : public ::testing::Test {
 protected:
  void SetUp() override { Reopen(); }
  // Closes the file and opens it again, as a new server does.
  void Reopen() {
    store_.reset();
    auto opened = SqliteJobStore::Open(folder_.Path("jobs.sqlite3"));
    ASSERT_THAT(opened, IsOk());
    store_ = *std::move(opened);
  }
  std::vector<std::string> ListIds(const std::vector<FilterTerm>& filter,
                                   const std::optional<ListCursor>& after = std::nullopt,
                                   int limit = 100) {
    std::vector<std::string> ids;
    const auto records = store_->ListJobs("default", filter, after, limit);
    EXPECT_THAT(records, IsOk());
    for (const JobRecord& record : *records) ids.push_back(record.id);
    return ids;
  }

  testing::ScratchFolder folder_;
  std::unique_ptr<SqliteJobStore> store_;
};

TEST_F(SqliteJobStoreTest, JobsEventsAndArtifactsSurviveReopening) {
  JobRecord record = MakeJob("a");
  record.last_sequence = 1;
  ASSERT_THAT(store_->InsertJob(record, {MakeEvent(1)}, {}, std::nullopt), IsOk());
  record.job.set_state(v1::QuantizationJob::RUNNING);
  record.last_sequence = 3;
  record.lost_workers = 2;
  record.worker_handle = "1:2";
  const std::vector<v1::FileNode> files = {MakeFile("b", "bytes"), MakeFile("a", "more")};
  ASSERT_THAT(store_->UpdateJob(record, {MakeEvent(2), MakeEvent(3)}, &files), IsOk());
  const std::string secret = store_->secret();
  Reopen();
  PTQ_ASSERT_OK_AND_ASSIGN(const JobRecord read, store_->GetJob("default", "a"));
  EXPECT_EQ(read.job.SerializeAsString(), record.job.SerializeAsString());
  EXPECT_EQ(read.last_sequence, 3);
  EXPECT_EQ(read.lost_workers, 2);
  EXPECT_EQ(read.worker_handle, "1:2");
  PTQ_ASSERT_OK_AND_ASSIGN(const auto events, store_->ReadEvents("default", "a", 1, 10));
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].sequence(), 2);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto listed, store_->ListArtifacts("default", "a", "", 10));
  ASSERT_EQ(listed.size(), 2u);
  EXPECT_EQ(listed[0].path(), "a");
  EXPECT_EQ(store_->secret(), secret);
  EXPECT_EQ(secret.size(), 32u);
}

TEST_F(SqliteJobStoreTest, AFailedChangeLeavesNothing) {
  JobRecord record = MakeJob("a");
  ASSERT_THAT(store_->InsertJob(record, {MakeEvent(1)}, {}, std::nullopt), IsOk());
  record.job.set_state(v1::QuantizationJob::RUNNING);
  // Sequence 1 is taken: the second event cannot be written.
  EXPECT_THAT(store_->UpdateJob(record, {MakeEvent(2), MakeEvent(1)}, nullptr),
              StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("UNIQUE")));
  PTQ_ASSERT_OK_AND_ASSIGN(const JobRecord read, store_->GetJob("default", "a"));
  EXPECT_EQ(read.job.state(), v1::QuantizationJob::QUEUED);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto events, store_->ReadEvents("default", "a", 0, 10));
  EXPECT_EQ(events.size(), 1u);
}

TEST_F(SqliteJobStoreTest, ANewerSchemaIsRefused) {
  store_.reset();
  PTQ_ASSERT_OK_AND_ASSIGN(auto database, SqliteDatabase::Open(folder_.Path("jobs.sqlite3")));
  ASSERT_THAT(database->Execute("PRAGMA user_version = 99"), IsOk());
  database.reset();
  EXPECT_THAT(SqliteJobStore::Open(folder_.Path("jobs.sqlite3")),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("newer ptqd")));
}

TEST_F(SqliteJobStoreTest, AFileThatIsNoDatabaseIsDataLoss) {
  const std::string path = folder_.Write("other.sqlite3", std::string(4096, 'x'));
  EXPECT_THAT(SqliteJobStore::Open(path),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("job database")));
}

TEST_F(SqliteJobStoreTest, TheQueueIsByPriorityThenAge) {
  JobRecord late = MakeJob("late", 5);
  JobRecord early = MakeJob("early", 1);
  JobRecord urgent = MakeJob("urgent", 9);
  urgent.job.mutable_spec()->set_priority(7);
  for (const JobRecord* record : {&late, &early, &urgent}) {
    ASSERT_THAT(store_->InsertJob(*record, {}, {}, std::nullopt), IsOk());
  }
  for (const char* expected : {"urgent", "early", "late"}) {
    PTQ_ASSERT_OK_AND_ASSIGN(auto next, store_->NextQueuedJob());
    ASSERT_TRUE(next.has_value());
    EXPECT_EQ(next->id, expected);
    next->job.set_state(v1::QuantizationJob::PENDING);
    ASSERT_THAT(store_->UpdateJob(*next, {}, nullptr), IsOk());
  }
  PTQ_ASSERT_OK_AND_ASSIGN(const auto none, store_->NextQueuedJob());
  EXPECT_FALSE(none.has_value());
}

TEST_F(SqliteJobStoreTest, ListsNewestFirstInPagesAndFilters) {
  for (int i = 0; i < 5; ++i) {
    JobRecord record = MakeJob(absl::StrCat("j", i), i);
    if (i % 2 == 0) (*record.job.mutable_labels())["team"] = "x\" OR 1=1";
    if (i == 4) record.job.set_state(v1::QuantizationJob::FAILED);
    ASSERT_THAT(store_->InsertJob(record, {}, {}, std::nullopt), IsOk());
  }
  EXPECT_THAT(ListIds({}), ElementsAre("j4", "j3", "j2", "j1", "j0"));
  EXPECT_THAT(ListIds({}, ListCursor{kNow + absl::Seconds(3), "j3"}, 2), ElementsAre("j2", "j1"));
  FilterTerm label;
  label.field = FilterTerm::Field::kLabel;
  label.label = "team";
  label.text = "x\" OR 1=1";
  EXPECT_THAT(ListIds({label}), ElementsAre("j4", "j2", "j0"));
  FilterTerm failed;
  failed.text = "FAILED";
  EXPECT_THAT(ListIds({label, failed}), ElementsAre("j4"));
  FilterTerm after;
  after.field = FilterTerm::Field::kCreateTime;
  after.op = FilterTerm::Operator::kGreaterOrEqual;
  after.time = kNow + absl::Seconds(3);
  EXPECT_THAT(ListIds({after}), ElementsAre("j4", "j3"));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto other, store_->ListJobs("other", {}, std::nullopt, 10));
  EXPECT_THAT(other, IsEmpty());
}

TEST_F(SqliteJobStoreTest, ARequestIdMakesOneJob) {
  const RequestKey key{"CreateQuantizationJob", "id", "body"};
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string first, store_->InsertJob(MakeJob("a"), {}, {}, key));
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string second, store_->InsertJob(MakeJob("b"), {}, {}, key));
  EXPECT_EQ(first, "a");
  EXPECT_EQ(second, "a");
  EXPECT_THAT(store_->GetJob("default", "b"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("b")));
  EXPECT_THAT(store_->InsertJob(MakeJob("c"), {}, {}, RequestKey{key.method, key.id, "other"}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("different request")));
  // As long as the job lives the request does, however old.
  ASSERT_THAT(store_->ForgetRequests(kNow + absl::Hours(99)), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(auto known, store_->FindRequest("default", key));
  EXPECT_EQ(known, "a");
  JobRecord ended = MakeJob("a");
  ended.job.set_state(v1::QuantizationJob::CANCELLED);
  ASSERT_THAT(store_->UpdateJob(ended, {}, nullptr), IsOk());
  ASSERT_THAT(store_->DeleteJob("default", "a"), IsOk());
  ASSERT_THAT(store_->ForgetRequests(kNow - absl::Hours(1)), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(known, store_->FindRequest("default", key));
  EXPECT_EQ(known, "a") << "a young request was forgotten";
  ASSERT_THAT(store_->ForgetRequests(kNow + absl::Hours(1)), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(known, store_->FindRequest("default", key));
  EXPECT_FALSE(known.has_value());
}

TEST_F(SqliteJobStoreTest, BlobsLiveAsLongAsSomethingNamesThem) {
  const v1::Digest shared = DigestOf("shared");
  const v1::Digest lonely = DigestOf("lonely");
  for (const v1::Digest& digest : {shared, lonely}) {
    ASSERT_THAT(store_->AddBlob("default", digest, kNow), IsOk());
  }
  InputRecord input{"default", InputKind::kModel, "m", "payload", {shared.hash()}, kNow};
  ASSERT_THAT(store_->InsertInput(input, std::nullopt), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(
      auto freed, store_->RemoveUnreferencedBlobs("default", {shared.hash(), lonely.hash()}));
  EXPECT_THAT(freed, ElementsAre(lonely.hash()));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto missing,
                           store_->MissingBlobs("default", {shared, lonely}, kNow));
  ASSERT_EQ(missing.size(), 1u);
  EXPECT_EQ(missing[0].hash(), lonely.hash());
  PTQ_ASSERT_OK_AND_ASSIGN(const auto named,
                           store_->DeleteInput("default", InputKind::kModel, "m"));
  EXPECT_THAT(named, ElementsAre(shared.hash()));
  PTQ_ASSERT_OK_AND_ASSIGN(freed, store_->RemoveUnreferencedBlobs("default", named));
  EXPECT_THAT(freed, ElementsAre(shared.hash()));
}

TEST_F(SqliteJobStoreTest, OneTenantsBlobsAreMissingForAnother) {
  const v1::Digest digest = DigestOf("secret");
  ASSERT_THAT(store_->AddBlob("default", digest, kNow), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(const auto missing, store_->MissingBlobs("other", {digest}, kNow));
  EXPECT_EQ(missing.size(), 1u);
}

TEST_F(SqliteJobStoreTest, AnInputWhoseBlobIsGoneIsRefused) {
  InputRecord input{"default", InputKind::kModel, "m", "payload", {Sha256Hex("x")}, kNow};
  EXPECT_THAT(store_->InsertInput(input, std::nullopt),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not on the server")));
  EXPECT_THAT(store_->GetInput("default", InputKind::kModel, "m"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("m")));
}

TEST_F(SqliteJobStoreTest, InputsInUseCannotGo) {
  InputRecord input{"default", InputKind::kModel, "m", "payload", {}, kNow};
  ASSERT_THAT(store_->InsertInput(input, std::nullopt), IsOk());
  JobRecord job = MakeJob("a");
  job.job.mutable_spec()->set_model("tenants/default/models/m");
  ASSERT_THAT(store_->InsertJob(job, {}, {}, std::nullopt), IsOk());
  EXPECT_THAT(store_->DeleteInput("default", InputKind::kModel, "m"),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("unfinished job a")));
  EXPECT_THAT(store_->DeleteJob("default", "a"),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not ended")));
  job.job.set_state(v1::QuantizationJob::SUCCEEDED);
  ASSERT_THAT(store_->UpdateJob(job, {}, nullptr), IsOk());
  EXPECT_THAT(store_->DeleteInput("default", InputKind::kModel, "m"), IsOk());
  job = MakeJob("b");
  job.job.mutable_spec()->set_model("tenants/default/models/m");
  EXPECT_THAT(store_->InsertJob(job, {}, {}, std::nullopt),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("models/m")));
}

TEST_F(SqliteJobStoreTest, StaleBlobsAreTheUnnamedAndUnused) {
  ASSERT_THAT(store_->AddBlob("default", DigestOf("old"), kNow - absl::Hours(30)), IsOk());
  ASSERT_THAT(store_->AddBlob("default", DigestOf("asked"), kNow - absl::Hours(30)), IsOk());
  ASSERT_THAT(store_->MissingBlobs("default", {DigestOf("asked")}, kNow), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(const auto stale, store_->StaleBlobs(kNow - absl::Hours(24)));
  ASSERT_EQ(stale.size(), 1u);
  EXPECT_EQ(stale[0].second, DigestOf("old").hash());
}

}  // namespace
}  // namespace ptq
