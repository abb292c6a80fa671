#include "server/store/sqlite_job_store.h"

#include <sys/random.h>

#include <set>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "server/errors/status_details.h"
#include "server/store/proto_time.h"

namespace ptq {
namespace {

constexpr int kSchemaVersion = 1;

// Times are microseconds since 1970; payloads are serialized messages; columns beside a payload are
// what queries need.
constexpr char kSchema[] = R"sql(
CREATE TABLE meta(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE blobs(tenant TEXT NOT NULL, hash TEXT NOT NULL, size INTEGER NOT NULL,
  use_time INTEGER NOT NULL, PRIMARY KEY(tenant, hash)) WITHOUT ROWID;
CREATE TABLE blob_references(tenant TEXT NOT NULL, owner TEXT NOT NULL, hash TEXT NOT NULL,
  PRIMARY KEY(tenant, owner, hash)) WITHOUT ROWID;
CREATE INDEX blob_references_by_hash ON blob_references(tenant, hash);
CREATE TABLE inputs(tenant TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL,
  create_time INTEGER NOT NULL, payload BLOB NOT NULL, PRIMARY KEY(tenant, kind, id));
CREATE INDEX inputs_by_time ON inputs(tenant, kind, create_time, id);
CREATE TABLE requests(tenant TEXT NOT NULL, method TEXT NOT NULL, id TEXT NOT NULL,
  body_digest TEXT NOT NULL, resource TEXT NOT NULL, create_time INTEGER NOT NULL,
  PRIMARY KEY(tenant, method, id)) WITHOUT ROWID;
CREATE TABLE jobs(tenant TEXT NOT NULL, id TEXT NOT NULL, state INTEGER NOT NULL,
  priority INTEGER NOT NULL, create_time INTEGER NOT NULL, end_time INTEGER NOT NULL,
  expire_time INTEGER NOT NULL, action_hash TEXT NOT NULL, model TEXT NOT NULL,
  calibration TEXT NOT NULL, evaluation TEXT NOT NULL, last_sequence INTEGER NOT NULL,
  lost_workers INTEGER NOT NULL, worker_handle TEXT NOT NULL, payload BLOB NOT NULL,
  PRIMARY KEY(tenant, id));
CREATE INDEX jobs_by_time ON jobs(tenant, create_time, id);
CREATE INDEX jobs_by_state ON jobs(state, priority DESC, create_time, id);
CREATE INDEX jobs_by_expiry ON jobs(expire_time);
CREATE INDEX jobs_by_action ON jobs(tenant, action_hash);
CREATE TABLE job_labels(tenant TEXT NOT NULL, job TEXT NOT NULL, key TEXT NOT NULL,
  value TEXT NOT NULL, PRIMARY KEY(tenant, job, key)) WITHOUT ROWID;
CREATE TABLE job_events(tenant TEXT NOT NULL, job TEXT NOT NULL, sequence INTEGER NOT NULL,
  payload BLOB NOT NULL, PRIMARY KEY(tenant, job, sequence)) WITHOUT ROWID;
CREATE TABLE artifacts(tenant TEXT NOT NULL, job TEXT NOT NULL, path TEXT NOT NULL,
  hash TEXT NOT NULL, size INTEGER NOT NULL, PRIMARY KEY(tenant, job, path)) WITHOUT ROWID;
PRAGMA user_version = 1;
)sql";

// The states that a job never leaves by itself.
constexpr char kEndedStates[] = "(4, 5, 7, 9)";
static_assert(v1::QuantizationJob::SUCCEEDED == 4 && v1::QuantizationJob::FAILED == 5 &&
              v1::QuantizationJob::CANCELLED == 7 && v1::QuantizationJob::EXPIRED == 9);

constexpr char kJobColumns[] =
    "SELECT tenant, id, last_sequence, lost_workers, worker_handle, payload FROM jobs ";

int64_t Micros(absl::Time time) { return absl::ToUnixMicros(time); }
int64_t Micros(const google::protobuf::Timestamp& time) { return Micros(FromProtoTime(time)); }

std::string JobOwner(const std::string& id) { return "quantizationJobs/" + id; }
std::string InputOwner(InputKind kind, const std::string& id) {
  return std::string(InputCollection(kind)) + "/" + id;
}

absl::StatusOr<JobRecord> ReadJobRow(const SqliteStatement& row) {
  JobRecord record;
  record.tenant = row.Text(0);
  record.id = row.Text(1);
  record.last_sequence = row.Int(2);
  record.lost_workers = static_cast<int32_t>(row.Int(3));
  record.worker_handle = row.Text(4);
  if (!record.job.ParseFromString(row.Text(5))) {
    return absl::DataLossError("job database: the row of job " + record.id + " is damaged");
  }
  return record;
}

absl::StatusOr<std::vector<JobRecord>> ReadJobRows(SqliteStatement& statement) {
  std::vector<JobRecord> records;
  while (true) {
    PTQ_ASSIGN_OR_RETURN(const bool more, statement.Step());
    if (!more) return records;
    PTQ_ASSIGN_OR_RETURN(JobRecord record, ReadJobRow(statement));
    records.push_back(std::move(record));
  }
}

absl::StatusOr<std::vector<std::string>> ReadTexts(SqliteStatement& statement) {
  std::vector<std::string> texts;
  while (true) {
    PTQ_ASSIGN_OR_RETURN(const bool more, statement.Step());
    if (!more) return texts;
    texts.push_back(statement.Text(0));
  }
}

}  // namespace

const char* InputCollection(InputKind kind) {
  return kind == InputKind::kModel ? "models" : "datasets";
}

absl::StatusOr<std::unique_ptr<SqliteJobStore>> SqliteJobStore::Open(const std::string& path) {
  PTQ_ASSIGN_OR_RETURN(auto database, SqliteDatabase::Open(path));
  std::unique_ptr<SqliteJobStore> store(new SqliteJobStore(std::move(database)));
  PTQ_RETURN_IF_ERROR(store->CreateSchema());
  return store;
}

absl::Status SqliteJobStore::CreateSchema() {
  absl::MutexLock lock(&mutex_);
  int64_t version = 0;
  {
    PTQ_ASSIGN_OR_RETURN(auto statement, database_->Prepare("PRAGMA user_version"));
    PTQ_RETURN_IF_ERROR(statement.Step().status());
    version = statement.Int(0);
  }
  if (version > kSchemaVersion) {
    return absl::FailedPreconditionError(
        absl::StrFormat("the data folder was written by a newer ptqd (its schema is %d, this one "
                        "knows %d); use that version",
                        version, kSchemaVersion));
  }
  if (version == 0) {
    const absl::Status done = database_->InTransaction([&]() -> absl::Status {
      mutex_.AssertHeld();
      PTQ_RETURN_IF_ERROR(database_->Execute(kSchema));
      std::string secret(32, '\0');
      if (::getrandom(secret.data(), secret.size(), 0) != static_cast<ssize_t>(secret.size())) {
        return absl::InternalError("getrandom failed");
      }
      PTQ_ASSIGN_OR_RETURN(auto statement,
                           database_->Prepare("INSERT INTO meta VALUES ('secret', ?)"));
      return statement.BindBlob(secret).Run();
    });
    PTQ_RETURN_IF_ERROR(done);
  }
  PTQ_ASSIGN_OR_RETURN(auto statement,
                       database_->Prepare("SELECT value FROM meta WHERE key = 'secret'"));
  PTQ_ASSIGN_OR_RETURN(const bool found, statement.Step());
  if (!found) return absl::DataLossError("job database: its secret is missing");
  secret_ = statement.Text(0);
  return absl::OkStatus();
}

// --- requests

absl::StatusOr<std::optional<std::string>> SqliteJobStore::FindRequest(const std::string& tenant,
                                                                       const RequestKey& request) {
  absl::MutexLock lock(&mutex_);
  return FindRequestLocked(tenant, request);
}

absl::StatusOr<std::optional<std::string>> SqliteJobStore::FindRequestLocked(
    const std::string& tenant, const RequestKey& request) {
  PTQ_ASSIGN_OR_RETURN(auto statement,
                       database_->Prepare("SELECT body_digest, resource FROM requests "
                                          "WHERE tenant = ? AND method = ? AND id = ?"));
  statement.BindText(tenant).BindText(request.method).BindText(request.id);
  PTQ_ASSIGN_OR_RETURN(const bool found, statement.Step());
  if (!found) return std::nullopt;
  if (statement.Text(0) != request.body_digest) {
    return WithReason(
        AtField(absl::InvalidArgumentError("request_id " + request.id +
                                           " was used for a different request; choose a new one"),
                "request_id"),
        "REQUEST_ID_REUSED");
  }
  return statement.Text(1);
}

absl::Status SqliteJobStore::InsertRequest(const std::string& tenant, const RequestKey& request,
                                           const std::string& resource, absl::Time now) {
  PTQ_ASSIGN_OR_RETURN(auto statement,
                       database_->Prepare("INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?)"));
  return statement.BindText(tenant)
      .BindText(request.method)
      .BindText(request.id)
      .BindText(request.body_digest)
      .BindText(resource)
      .Bind(Micros(now))
      .Run();
}

absl::Status SqliteJobStore::ForgetRequests(absl::Time before) {
  absl::MutexLock lock(&mutex_);
  PTQ_ASSIGN_OR_RETURN(
      auto statement,
      database_->Prepare(
          "DELETE FROM requests WHERE create_time < ? AND NOT EXISTS "
          "(SELECT 1 FROM jobs WHERE jobs.tenant = requests.tenant AND jobs.id = "
          "requests.resource) "
          "AND NOT EXISTS (SELECT 1 FROM inputs WHERE inputs.tenant = requests.tenant AND "
          "inputs.id = requests.resource)"));
  return statement.Bind(Micros(before)).Run();
}

// --- models and datasets

absl::Status SqliteJobStore::InsertInput(const InputRecord& input,
                                         const std::optional<RequestKey>& request) {
  absl::MutexLock lock(&mutex_);
  return database_->InTransaction([&]() -> absl::Status {
    mutex_.AssertHeld();
    if (request.has_value()) {
      PTQ_ASSIGN_OR_RETURN(const auto earlier, FindRequestLocked(input.tenant, *request));
      if (!earlier.has_value()) {
        PTQ_RETURN_IF_ERROR(InsertRequest(input.tenant, *request, input.id, input.create_time));
      }
    }
    PTQ_ASSIGN_OR_RETURN(auto insert,
                         database_->Prepare("INSERT OR IGNORE INTO inputs VALUES (?, ?, ?, ?, ?)"));
    PTQ_RETURN_IF_ERROR(insert.BindText(input.tenant)
                            .BindText(InputCollection(input.kind))
                            .BindText(input.id)
                            .Bind(Micros(input.create_time))
                            .BindBlob(input.payload)
                            .Run());
    std::vector<v1::Digest> missing;
    for (const std::string& hash : input.blobs) {
      PTQ_ASSIGN_OR_RETURN(const bool present, HasBlob(input.tenant, hash, -1));
      if (!present) {
        missing.emplace_back().set_hash(hash);
        continue;
      }
      PTQ_RETURN_IF_ERROR(AddReference(input.tenant, InputOwner(input.kind, input.id), hash));
    }
    return missing.empty() ? absl::OkStatus() : MissingBlobsError(missing);
  });
}

absl::StatusOr<InputRecord> SqliteJobStore::GetInput(const std::string& tenant, InputKind kind,
                                                     const std::string& id) {
  absl::MutexLock lock(&mutex_);
  PTQ_ASSIGN_OR_RETURN(auto statement,
                       database_->Prepare("SELECT create_time, payload FROM inputs "
                                          "WHERE tenant = ? AND kind = ? AND id = ?"));
  statement.BindText(tenant).BindText(InputCollection(kind)).BindText(id);
  PTQ_ASSIGN_OR_RETURN(const bool found, statement.Step());
  if (!found) return absl::NotFoundError(InputOwner(kind, id));
  InputRecord input{tenant, kind, id, statement.Text(1), {}, {}};
  input.create_time = absl::FromUnixMicros(statement.Int(0));
  return input;
}

absl::StatusOr<std::vector<InputRecord>> SqliteJobStore::ListInputs(
    const std::string& tenant, InputKind kind, const std::optional<ListCursor>& after, int limit) {
  absl::MutexLock lock(&mutex_);
  PTQ_ASSIGN_OR_RETURN(
      auto statement,
      database_->Prepare(
          "SELECT id, create_time, payload FROM inputs WHERE tenant = ? AND kind = ? "
          "AND (create_time, id) < (?, ?) "
          "ORDER BY create_time DESC, id DESC LIMIT ?"));
  statement.BindText(tenant)
      .BindText(InputCollection(kind))
      .Bind(after ? Micros(after->create_time) : INT64_MAX)
      .BindText(after ? after->id : "")
      .Bind(limit);
  std::vector<InputRecord> inputs;
  while (true) {
    PTQ_ASSIGN_OR_RETURN(const bool more, statement.Step());
    if (!more) return inputs;
    InputRecord input{tenant, kind, statement.Text(0), statement.Text(2), {}, {}};
    input.create_time = absl::FromUnixMicros(statement.Int(1));
    inputs.push_back(std::move(input));
  }
}

absl::StatusOr<std::vector<std::string>> SqliteJobStore::DeleteInput(const std::string& tenant,
                                                                     InputKind kind,
                                                                     const std::string& id) {
  const std::string name = "tenants/" + tenant + "/" + InputOwner(kind, id);
  absl::MutexLock lock(&mutex_);
  std::vector<std::string> hashes;
  const absl::Status done = database_->InTransaction([&]() -> absl::Status {
    mutex_.AssertHeld();
    {
      PTQ_ASSIGN_OR_RETURN(auto users,
                           database_->Prepare(absl::StrFormat(
                               "SELECT id FROM jobs WHERE tenant = ? AND ? IN (model, calibration, "
                               "evaluation) AND state NOT IN %s LIMIT 1",
                               kEndedStates)));
      users.BindText(tenant).BindText(name);
      PTQ_ASSIGN_OR_RETURN(const bool used, users.Step());
      if (used) {
        return WrongState(name, "RESOURCE_IN_USE",
                          name + " is used by the unfinished job " + users.Text(0) +
                              "; wait for it or cancel it first");
      }
    }
    PTQ_ASSIGN_OR_RETURN(auto statement,
                         database_->Prepare("DELETE FROM inputs "
                                            "WHERE tenant = ? AND kind = ? AND id = ?"));
    PTQ_RETURN_IF_ERROR(
        statement.BindText(tenant).BindText(InputCollection(kind)).BindText(id).Run());
    if (database_->changes() == 0) return absl::NotFoundError(name);
    PTQ_ASSIGN_OR_RETURN(hashes, DropReferences(tenant, InputOwner(kind, id)));
    return absl::OkStatus();
  });
  PTQ_RETURN_IF_ERROR(done);
  return hashes;
}

absl::StatusOr<bool> SqliteJobStore::HasInput(const std::string& tenant, const std::string& name) {
  PTQ_ASSIGN_OR_RETURN(auto statement,
                       database_->Prepare("SELECT 1 FROM inputs WHERE tenant = ? AND "
                                          "'tenants/' || tenant || '/' || kind || '/' || id = ?"));
  return statement.BindText(tenant).BindText(name).Step();
}

// --- jobs

absl::StatusOr<std::string> SqliteJobStore::InsertJob(const JobRecord& record,
                                                      const std::vector<v1::JobEvent>& events,
                                                      const std::vector<v1::FileNode>& artifacts,
                                                      const std::optional<RequestKey>& request) {
  absl::MutexLock lock(&mutex_);
  std::string id = record.id;
  const absl::Status done = database_->InTransaction([&]() -> absl::Status {
    mutex_.AssertHeld();
    if (request.has_value()) {
      PTQ_ASSIGN_OR_RETURN(const auto earlier, FindRequestLocked(record.tenant, *request));
      if (earlier.has_value()) {
        id = *earlier;
        return absl::OkStatus();
      }
      PTQ_RETURN_IF_ERROR(InsertRequest(record.tenant, *request, record.id,
                                        FromProtoTime(record.job.create_time())));
    }
    const v1::QuantizationSpec& spec = record.job.spec();
    for (const std::string& input :
         {spec.model(), spec.calibration_dataset(), spec.evaluation_dataset()}) {
      if (input.empty()) continue;
      PTQ_ASSIGN_OR_RETURN(const bool present, HasInput(record.tenant, input));
      if (!present) return ResourceNotFound("input", input);
    }
    PTQ_RETURN_IF_ERROR(WriteJobRow(record));
    for (const auto& [key, value] : record.job.labels()) {
      PTQ_ASSIGN_OR_RETURN(auto statement,
                           database_->Prepare("INSERT INTO job_labels VALUES (?, ?, ?, ?)"));
      PTQ_RETURN_IF_ERROR(statement.BindText(record.tenant)
                              .BindText(record.id)
                              .BindText(key)
                              .BindText(value)
                              .Run());
    }
    PTQ_RETURN_IF_ERROR(AppendEvents(record, events));
    return ReplaceArtifacts(record, artifacts);
  });
  PTQ_RETURN_IF_ERROR(done);
  return id;
}

absl::StatusOr<JobRecord> SqliteJobStore::GetJob(const std::string& tenant, const std::string& id) {
  absl::MutexLock lock(&mutex_);
  PTQ_ASSIGN_OR_RETURN(
      auto statement, database_->Prepare(std::string(kJobColumns) + "WHERE tenant = ? AND id = ?"));
  statement.BindText(tenant).BindText(id);
  PTQ_ASSIGN_OR_RETURN(const bool found, statement.Step());
  if (!found) return absl::NotFoundError(JobOwner(id));
  return ReadJobRow(statement);
}

absl::Status SqliteJobStore::UpdateJob(const JobRecord& record,
                                       const std::vector<v1::JobEvent>& events,
                                       const std::vector<v1::FileNode>* artifacts) {
  absl::MutexLock lock(&mutex_);
  const bool progress = record.job.state() == v1::QuantizationJob::RUNNING;
  const auto update = [&]() -> absl::Status {
    mutex_.AssertHeld();
    {
      PTQ_ASSIGN_OR_RETURN(auto statement, database_->Prepare("DELETE FROM jobs "
                                                              "WHERE tenant = ? AND id = ?"));
      PTQ_RETURN_IF_ERROR(statement.BindText(record.tenant).BindText(record.id).Run());
      if (database_->changes() == 0) return absl::NotFoundError(JobOwner(record.id));
    }
    PTQ_RETURN_IF_ERROR(WriteJobRow(record));
    PTQ_RETURN_IF_ERROR(AppendEvents(record, events));
    return artifacts == nullptr ? absl::OkStatus() : ReplaceArtifacts(record, *artifacts);
  };
  return database_->InTransaction(update, progress ? DiskSpace::kFree : DiskSpace::kReserved);
}

absl::Status SqliteJobStore::WriteJobRow(const JobRecord& record) {
  const v1::QuantizationJob& job = record.job;
  PTQ_ASSIGN_OR_RETURN(
      auto statement,
      database_->Prepare("INSERT INTO jobs(tenant, id, state, priority, create_time, end_time, "
                         "expire_time, action_hash, model, calibration, evaluation, last_sequence, "
                         "lost_workers, worker_handle, payload) "
                         "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"));
  return statement.BindText(record.tenant)
      .BindText(record.id)
      .Bind(job.state())
      .Bind(job.spec().priority())
      .Bind(Micros(job.create_time()))
      .Bind(job.has_end_time() ? Micros(job.end_time()) : 0)
      .Bind(job.has_expire_time() ? Micros(job.expire_time()) : INT64_MAX)
      .BindText(job.action_digest().hash())
      .BindText(job.spec().model())
      .BindText(job.spec().calibration_dataset())
      .BindText(job.spec().evaluation_dataset())
      .Bind(record.last_sequence)
      .Bind(record.lost_workers)
      .BindText(record.worker_handle)
      .BindBlob(job.SerializeAsString())
      .Run();
}

absl::Status SqliteJobStore::AppendEvents(const JobRecord& record,
                                          const std::vector<v1::JobEvent>& events) {
  for (const v1::JobEvent& event : events) {
    PTQ_ASSIGN_OR_RETURN(auto statement,
                         database_->Prepare("INSERT INTO job_events VALUES (?, ?, ?, ?)"));
    PTQ_RETURN_IF_ERROR(statement.BindText(record.tenant)
                            .BindText(record.id)
                            .Bind(event.sequence())
                            .BindBlob(event.SerializeAsString())
                            .Run());
  }
  return absl::OkStatus();
}

absl::Status SqliteJobStore::ReplaceArtifacts(const JobRecord& record,
                                              const std::vector<v1::FileNode>& artifacts) {
  {
    PTQ_ASSIGN_OR_RETURN(auto statement, database_->Prepare("DELETE FROM artifacts "
                                                            "WHERE tenant = ? AND job = ?"));
    PTQ_RETURN_IF_ERROR(statement.BindText(record.tenant).BindText(record.id).Run());
  }
  PTQ_RETURN_IF_ERROR(DropReferences(record.tenant, JobOwner(record.id)).status());
  const int64_t now = Micros(absl::Now());
  for (const v1::FileNode& file : artifacts) {
    PTQ_ASSIGN_OR_RETURN(auto statement,
                         database_->Prepare("INSERT INTO artifacts VALUES (?, ?, ?, ?, ?)"));
    PTQ_RETURN_IF_ERROR(statement.BindText(record.tenant)
                            .BindText(record.id)
                            .BindText(file.path())
                            .BindText(file.digest().hash())
                            .Bind(file.digest().size_bytes())
                            .Run());
    PTQ_ASSIGN_OR_RETURN(auto blob,
                         database_->Prepare("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?)"));
    PTQ_RETURN_IF_ERROR(blob.BindText(record.tenant)
                            .BindText(file.digest().hash())
                            .Bind(file.digest().size_bytes())
                            .Bind(now)
                            .Run());
    PTQ_RETURN_IF_ERROR(AddReference(record.tenant, JobOwner(record.id), file.digest().hash()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<JobRecord>> SqliteJobStore::ListJobs(
    const std::string& tenant, const std::vector<FilterTerm>& filter,
    const std::optional<ListCursor>& after, int limit) {
  // The text is put together from constants; what the client sent is bound.
  std::string sql = std::string(kJobColumns) + "WHERE tenant = ? AND (create_time, id) < (?, ?)";
  for (const FilterTerm& term : filter) {
    switch (term.field) {
      case FilterTerm::Field::kState:
        sql += " AND state = ?";
        break;
      case FilterTerm::Field::kLabel:
        sql +=
            " AND EXISTS (SELECT 1 FROM job_labels WHERE job_labels.tenant = jobs.tenant AND "
            "job_labels.job = jobs.id AND key = ? AND value = ?)";
        break;
      case FilterTerm::Field::kCreateTime:
        static constexpr const char* kOperators[] = {"=", "<", "<=", ">", ">="};
        sql += std::string(" AND create_time ") + kOperators[static_cast<int>(term.op)] + " ?";
        break;
    }
  }
  sql += " ORDER BY create_time DESC, id DESC LIMIT ?";
  absl::MutexLock lock(&mutex_);
  // Clients choose the shape of this statement, so the cache needs a bound.
  database_->TrimStatementCache(128);
  PTQ_ASSIGN_OR_RETURN(auto statement, database_->Prepare(sql));
  statement.BindText(tenant)
      .Bind(after ? Micros(after->create_time) : INT64_MAX)
      .BindText(after ? after->id : "");
  for (const FilterTerm& term : filter) {
    switch (term.field) {
      case FilterTerm::Field::kState: {
        v1::QuantizationJob::State state = v1::QuantizationJob::STATE_UNSPECIFIED;
        v1::QuantizationJob::State_Parse(term.text, &state);
        statement.Bind(state);
        break;
      }
      case FilterTerm::Field::kLabel:
        statement.BindText(term.label).BindText(term.text);
        break;
      case FilterTerm::Field::kCreateTime:
        statement.Bind(Micros(term.time));
        break;
    }
  }
  statement.Bind(limit);
  return ReadJobRows(statement);
}

absl::StatusOr<std::optional<JobRecord>> SqliteJobStore::NextQueuedJob() {
  absl::MutexLock lock(&mutex_);
  PTQ_ASSIGN_OR_RETURN(
      auto statement,
      database_->Prepare(std::string(kJobColumns) +
                         "WHERE state = ? ORDER BY priority DESC, create_time, id LIMIT 1"));
  statement.Bind(v1::QuantizationJob::QUEUED);
  PTQ_ASSIGN_OR_RETURN(auto records, ReadJobRows(statement));
  if (records.empty()) return std::nullopt;
  return std::move(records.front());
}

absl::StatusOr<std::vector<JobRecord>> SqliteJobStore::JobsInStates(
    const std::vector<v1::QuantizationJob::State>& states) {
  absl::MutexLock lock(&mutex_);
  std::vector<JobRecord> all;
  for (const auto state : states) {
    PTQ_ASSIGN_OR_RETURN(auto statement,
                         database_->Prepare(std::string(kJobColumns) + "WHERE state = ?"));
    statement.Bind(state);
    PTQ_ASSIGN_OR_RETURN(auto records, ReadJobRows(statement));
    for (JobRecord& record : records) all.push_back(std::move(record));
  }
  return all;
}

absl::StatusOr<std::optional<JobRecord>> SqliteJobStore::FindReusableJob(
    const std::string& tenant, const std::string& action_hash) {
  absl::MutexLock lock(&mutex_);
  PTQ_ASSIGN_OR_RETURN(auto statement,
                       database_->Prepare(std::string(kJobColumns) +
                                          "WHERE tenant = ? AND action_hash = ? AND state = ? "
                                          "ORDER BY end_time DESC, id LIMIT 1"));
  statement.BindText(tenant).BindText(action_hash).Bind(v1::QuantizationJob::SUCCEEDED);
  PTQ_ASSIGN_OR_RETURN(auto records, ReadJobRows(statement));
  if (records.empty()) return std::nullopt;
  return std::move(records.front());
}

absl::StatusOr<std::vector<JobRecord>> SqliteJobStore::ExpiredJobs(absl::Time now) {
  absl::MutexLock lock(&mutex_);
  PTQ_ASSIGN_OR_RETURN(auto statement,
                       database_->Prepare(std::string(kJobColumns) +
                                          "INDEXED BY jobs_by_expiry "
                                          "WHERE expire_time <= ? AND state IN (4, 5, 7)"));
  statement.Bind(Micros(now));
  return ReadJobRows(statement);
}

absl::StatusOr<std::vector<v1::JobEvent>> SqliteJobStore::ReadEvents(const std::string& tenant,
                                                                     const std::string& id,
                                                                     int64_t after_sequence,
                                                                     int limit) {
  absl::MutexLock lock(&mutex_);
  PTQ_ASSIGN_OR_RETURN(auto statement,
                       database_->Prepare("SELECT payload FROM job_events WHERE tenant = ? AND "
                                          "job = ? AND sequence > ? ORDER BY sequence LIMIT ?"));
  statement.BindText(tenant).BindText(id).Bind(after_sequence).Bind(limit);
  std::vector<v1::JobEvent> events;
  while (true) {
    PTQ_ASSIGN_OR_RETURN(const bool more, statement.Step());
    if (!more) return events;
    if (!events.emplace_back().ParseFromString(statement.Text(0))) {
      return absl::DataLossError("job database: an event of job " + id + " is damaged");
    }
  }
}

absl::StatusOr<std::vector<v1::FileNode>> SqliteJobStore::ListArtifacts(
    const std::string& tenant, const std::string& id, const std::string& after_path, int limit) {
  absl::MutexLock lock(&mutex_);
  PTQ_ASSIGN_OR_RETURN(auto statement,
                       database_->Prepare("SELECT path, hash, size FROM artifacts WHERE tenant = ? "
                                          "AND job = ? AND path > ? ORDER BY path LIMIT ?"));
  statement.BindText(tenant).BindText(id).BindText(after_path).Bind(limit);
  std::vector<v1::FileNode> files;
  while (true) {
    PTQ_ASSIGN_OR_RETURN(const bool more, statement.Step());
    if (!more) return files;
    v1::FileNode& file = files.emplace_back();
    file.set_path(statement.Text(0));
    file.mutable_digest()->set_hash(statement.Text(1));
    file.mutable_digest()->set_size_bytes(statement.Int(2));
  }
}

absl::StatusOr<std::vector<std::string>> SqliteJobStore::DeleteJob(const std::string& tenant,
                                                                   const std::string& id) {
  absl::MutexLock lock(&mutex_);
  std::vector<std::string> hashes;
  const absl::Status done = database_->InTransaction(
      [&]() -> absl::Status {
        mutex_.AssertHeld();
        {
          PTQ_ASSIGN_OR_RETURN(
              auto running,
              database_->Prepare(absl::StrFormat(
                  "SELECT 1 FROM jobs WHERE tenant = ? AND id = ? AND state NOT IN %s",
                  kEndedStates)));
          PTQ_ASSIGN_OR_RETURN(const bool unfinished, running.BindText(tenant).BindText(id).Step());
          if (unfinished) {
            return WrongState(JobOwner(id), "JOB_NOT_ENDED",
                              "the job has not ended; cancel it before deleting it");
          }
        }
        for (const char* sql : {"DELETE FROM job_labels WHERE tenant = ? AND job = ?",
                                "DELETE FROM job_events WHERE tenant = ? AND job = ?",
                                "DELETE FROM artifacts WHERE tenant = ? AND job = ?",
                                "DELETE FROM jobs WHERE tenant = ? AND id = ?"}) {
          PTQ_ASSIGN_OR_RETURN(auto statement, database_->Prepare(sql));
          PTQ_RETURN_IF_ERROR(statement.BindText(tenant).BindText(id).Run());
        }
        if (database_->changes() == 0) return absl::NotFoundError(JobOwner(id));
        PTQ_ASSIGN_OR_RETURN(hashes, DropReferences(tenant, JobOwner(id)));
        return absl::OkStatus();
      },
      DiskSpace::kReserved);
  PTQ_RETURN_IF_ERROR(done);
  return hashes;
}

// --- blobs

absl::Status SqliteJobStore::AddReference(const std::string& tenant, const std::string& owner,
                                          const std::string& hash) {
  PTQ_ASSIGN_OR_RETURN(
      auto statement, database_->Prepare("INSERT OR IGNORE INTO blob_references VALUES (?, ?, ?)"));
  return statement.BindText(tenant).BindText(owner).BindText(hash).Run();
}

absl::StatusOr<std::vector<std::string>> SqliteJobStore::DropReferences(const std::string& tenant,
                                                                        const std::string& owner) {
  std::vector<std::string> hashes;
  {
    PTQ_ASSIGN_OR_RETURN(auto statement, database_->Prepare("SELECT hash FROM blob_references "
                                                            "WHERE tenant = ? AND owner = ?"));
    statement.BindText(tenant).BindText(owner);
    PTQ_ASSIGN_OR_RETURN(hashes, ReadTexts(statement));
  }
  PTQ_ASSIGN_OR_RETURN(auto statement, database_->Prepare("DELETE FROM blob_references "
                                                          "WHERE tenant = ? AND owner = ?"));
  PTQ_RETURN_IF_ERROR(statement.BindText(tenant).BindText(owner).Run());
  return hashes;
}

absl::StatusOr<bool> SqliteJobStore::HasBlob(const std::string& tenant, const std::string& hash,
                                             int64_t size) {
  PTQ_ASSIGN_OR_RETURN(auto statement,
                       database_->Prepare("SELECT size FROM blobs WHERE tenant = ? AND hash = ?"));
  statement.BindText(tenant).BindText(hash);
  PTQ_ASSIGN_OR_RETURN(const bool found, statement.Step());
  return found && (size < 0 || statement.Int(0) == size);
}

absl::Status SqliteJobStore::AddBlob(const std::string& tenant, const v1::Digest& digest,
                                     absl::Time now) {
  absl::MutexLock lock(&mutex_);
  PTQ_ASSIGN_OR_RETURN(auto statement,
                       database_->Prepare("INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?)"));
  return statement.BindText(tenant)
      .BindText(digest.hash())
      .Bind(digest.size_bytes())
      .Bind(Micros(now))
      .Run();
}

absl::StatusOr<std::vector<v1::Digest>> SqliteJobStore::MissingBlobs(
    const std::string& tenant, const std::vector<v1::Digest>& digests, absl::Time now) {
  absl::MutexLock lock(&mutex_);
  std::vector<v1::Digest> missing;
  std::set<std::string> seen;
  const absl::Status done = database_->InTransaction([&]() -> absl::Status {
    mutex_.AssertHeld();
    for (const v1::Digest& digest : digests) {
      if (!seen.insert(digest.hash()).second) continue;
      PTQ_ASSIGN_OR_RETURN(const bool present, HasBlob(tenant, digest.hash(), digest.size_bytes()));
      if (!present) {
        missing.push_back(digest);
        continue;
      }
      PTQ_ASSIGN_OR_RETURN(auto statement, database_->Prepare("UPDATE blobs SET use_time = ? "
                                                              "WHERE tenant = ? AND hash = ?"));
      PTQ_RETURN_IF_ERROR(
          statement.Bind(Micros(now)).BindText(tenant).BindText(digest.hash()).Run());
    }
    return absl::OkStatus();
  });
  PTQ_RETURN_IF_ERROR(done);
  return missing;
}

absl::Status SqliteJobStore::ForgetBlob(const std::string& hash) {
  absl::MutexLock lock(&mutex_);
  PTQ_ASSIGN_OR_RETURN(auto statement, database_->Prepare("DELETE FROM blobs WHERE hash = ?"));
  return statement.BindText(hash).Run();
}

absl::StatusOr<std::vector<std::string>> SqliteJobStore::RemoveUnreferencedBlobs(
    const std::string& tenant, const std::vector<std::string>& hashes) {
  absl::MutexLock lock(&mutex_);
  std::vector<std::string> free;
  const absl::Status done = database_->InTransaction([&]() -> absl::Status {
    mutex_.AssertHeld();
    for (const std::string& hash : hashes) {
      {
        PTQ_ASSIGN_OR_RETURN(
            auto statement,
            database_->Prepare("DELETE FROM blobs WHERE tenant = ? AND hash = ? AND NOT EXISTS "
                               "(SELECT 1 FROM blob_references r WHERE r.tenant = blobs.tenant "
                               "AND r.hash = blobs.hash)"));
        PTQ_RETURN_IF_ERROR(statement.BindText(tenant).BindText(hash).Run());
        if (database_->changes() == 0) continue;
      }
      PTQ_ASSIGN_OR_RETURN(auto others,
                           database_->Prepare("SELECT 1 FROM blobs WHERE hash = ? LIMIT 1"));
      PTQ_ASSIGN_OR_RETURN(const bool shared, others.BindText(hash).Step());
      if (!shared) free.push_back(hash);
    }
    return absl::OkStatus();
  });
  PTQ_RETURN_IF_ERROR(done);
  return free;
}

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> SqliteJobStore::StaleBlobs(
    absl::Time before) {
  absl::MutexLock lock(&mutex_);
  PTQ_ASSIGN_OR_RETURN(
      auto statement,
      database_->Prepare("SELECT tenant, hash FROM blobs WHERE use_time < ? AND NOT EXISTS "
                         "(SELECT 1 FROM blob_references r WHERE r.tenant = blobs.tenant AND "
                         "r.hash = blobs.hash) LIMIT 10000"));
  statement.Bind(Micros(before));
  std::vector<std::pair<std::string, std::string>> stale;
  while (true) {
    PTQ_ASSIGN_OR_RETURN(const bool more, statement.Step());
    if (!more) return stale;
    stale.emplace_back(statement.Text(0), statement.Text(1));
  }
}

}  // namespace ptq
