#include "server/store/sqlite_database.h"

#include <fcntl.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace ptq {
namespace {

constexpr off_t kReserveBytes = off_t{1} << 20;

absl::Status SqliteError(sqlite3* connection, int code) {
  const std::string message =
      absl::StrFormat("job database: %s",
                      connection != nullptr ? sqlite3_errmsg(connection) : sqlite3_errstr(code));
  switch (code & 0xff) {
    case SQLITE_FULL:
      return absl::ResourceExhaustedError(message);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(message);
    case SQLITE_CONSTRAINT:
      return absl::AlreadyExistsError(message);
    case SQLITE_NOMEM:
    case SQLITE_TOOBIG:
      return absl::ResourceExhaustedError(message);
    case SQLITE_CANTOPEN:
    case SQLITE_READONLY:
    case SQLITE_PERM:
      return absl::PermissionDeniedError(message);
    default:
      return absl::InternalError(message);
  }
}

}  // namespace

SqliteStatement::~SqliteStatement() {
  if (statement_ == nullptr) return;
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
}

SqliteStatement::SqliteStatement(SqliteStatement&& other) noexcept
    : connection_(other.connection_),
      statement_(std::exchange(other.statement_, nullptr)),
      next_parameter_(other.next_parameter_),
      bind_error_(other.bind_error_) {}

SqliteStatement& SqliteStatement::Bind(int64_t value) {
  const int code = sqlite3_bind_int64(statement_, next_parameter_++, value);
  if (code != SQLITE_OK) bind_error_ = code;
  return *this;
}

SqliteStatement& SqliteStatement::BindText(const std::string& value) {
  const int code = sqlite3_bind_text64(statement_, next_parameter_++, value.data(), value.size(),
                                       SQLITE_TRANSIENT, SQLITE_UTF8);
  if (code != SQLITE_OK) bind_error_ = code;
  return *this;
}

SqliteStatement& SqliteStatement::BindBlob(const std::string& value) {
  // A null pointer would bind NULL: data() of an empty string is never null.
  const int code = sqlite3_bind_blob64(statement_, next_parameter_++, value.data(), value.size(),
                                       SQLITE_TRANSIENT);
  if (code != SQLITE_OK) bind_error_ = code;
  return *this;
}

absl::StatusOr<bool> SqliteStatement::Step() {
  if (bind_error_ != SQLITE_OK) return SqliteError(connection_, bind_error_);
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return SqliteError(connection_, code);
}

absl::Status SqliteStatement::Run() { return Step().status(); }

std::string SqliteStatement::Text(int column) const {
  const void* data = sqlite3_column_blob(statement_, column);
  const int size = sqlite3_column_bytes(statement_, column);
  return data == nullptr ? std::string() : std::string(static_cast<const char*>(data), size);
}

absl::StatusOr<std::unique_ptr<SqliteDatabase>> SqliteDatabase::Open(const std::string& path) {
  sqlite3* connection = nullptr;
  const int code =
      sqlite3_open_v2(path.c_str(), &connection,
                      SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, nullptr);
  // On failure too there is a connection to close.
  std::unique_ptr<SqliteDatabase> database(new SqliteDatabase(connection, path + "-reserve"));
  if (code != SQLITE_OK) return SqliteError(connection, code);
  sqlite3_extended_result_codes(connection, 1);
  PTQ_RETURN_IF_ERROR(
      database->Execute("PRAGMA locking_mode = EXCLUSIVE;"
                        "PRAGMA journal_mode = WAL;"
                        "PRAGMA synchronous = FULL;"
                        "PRAGMA foreign_keys = ON;"
                        "PRAGMA cache_size = -4096;"));
  database->TakeReserve();
  return database;
}

SqliteDatabase::~SqliteDatabase() {
  for (auto& [sql, statement] : statements_) sqlite3_finalize(statement);
  sqlite3_close(connection_);
}

absl::Status SqliteDatabase::Execute(const char* sql) {
  const int code = sqlite3_exec(connection_, sql, nullptr, nullptr, nullptr);
  if (code != SQLITE_OK) return SqliteError(connection_, code);
  return absl::OkStatus();
}

absl::StatusOr<SqliteStatement> SqliteDatabase::Prepare(const std::string& sql) {
  auto [entry, inserted] = statements_.try_emplace(sql, nullptr);
  if (inserted) {
    const int code = sqlite3_prepare_v3(connection_, sql.data(), static_cast<int>(sql.size()),
                                        SQLITE_PREPARE_PERSISTENT, &entry->second, nullptr);
    if (code != SQLITE_OK) {
      statements_.erase(entry);
      return SqliteError(connection_, code);
    }
  }
  return SqliteStatement(connection_, entry->second);
}

void SqliteDatabase::TrimStatementCache(size_t limit) {
  if (statements_.size() <= limit) return;
  for (auto& [sql, statement] : statements_) sqlite3_finalize(statement);
  statements_.clear();
}

// Without room for it the server goes on: the next transaction tries again.
void SqliteDatabase::TakeReserve() {
  if (reserved_) return;
  const int file = ::open(reserve_path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return;
  reserved_ = ::posix_fallocate(file, 0, kReserveBytes) == 0;
  ::close(file);
  if (!reserved_) ::unlink(reserve_path_.c_str());
}

absl::Status SqliteDatabase::InTransaction(absl::FunctionRef<absl::Status()> body,
                                           DiskSpace space) {
  if (space == DiskSpace::kFree) TakeReserve();
  const absl::Status status = TryTransaction(body);
  if (!absl::IsResourceExhausted(status) || space == DiskSpace::kFree || !reserved_) return status;
  reserved_ = false;
  if (::unlink(reserve_path_.c_str()) != 0) return status;
  return TryTransaction(body);
}

absl::Status SqliteDatabase::TryTransaction(absl::FunctionRef<absl::Status()> body) {
  PTQ_RETURN_IF_ERROR(Execute("BEGIN IMMEDIATE"));
  absl::Status status = body();
  if (status.ok()) status = Execute("COMMIT");
  // A failed COMMIT (disk full) may or may not have ended the transaction.
  if (!status.ok() && sqlite3_get_autocommit(connection_) == 0) {
    const absl::Status rollback = Execute("ROLLBACK");
    if (!rollback.ok()) return rollback;
  }
  return status;
}

}  // namespace ptq
