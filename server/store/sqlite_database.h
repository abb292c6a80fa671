// SQLite behind absl::Status: one connection, cached prepared statements, transactions.
#ifndef PTQ_SERVER_STORE_SQLITE_DATABASE_H_
#define PTQ_SERVER_STORE_SQLITE_DATABASE_H_

#include <sqlite3.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ptq {

// One execution of a prepared statement. Thread-compatible; must not outlive its database; at most
// one at a time for one SQL text. Reset when it goes out of scope.
class SqliteStatement {
 public:
  SqliteStatement(sqlite3* connection, sqlite3_stmt* statement)
      : connection_(connection), statement_(statement) {}
  ~SqliteStatement();
  SqliteStatement(SqliteStatement&& other) noexcept;
  SqliteStatement& operator=(SqliteStatement&&) = delete;

  // Values for the ?s in order. An error (no memory) surfaces in Step.
  SqliteStatement& Bind(int64_t value);
  SqliteStatement& BindText(const std::string& value);
  SqliteStatement& BindBlob(const std::string& value);

  // True: a row is there. False: done.
  absl::StatusOr<bool> Step();
  // Step for statements without rows.
  absl::Status Run();

  int64_t Int(int column) const { return sqlite3_column_int64(statement_, column); }
  std::string Text(int column) const;  // text or blob

 private:
  sqlite3* connection_;
  sqlite3_stmt* statement_;
  int next_parameter_ = 1;
  int bind_error_ = SQLITE_OK;
};

// Whose space a transaction may take when the disk is full. kReserved: for what must be recorded
// all the same (a job's end) or frees space (a deletion).
enum class DiskSpace { kFree, kReserved };

// Thread-compatible: the owner's mutex guards it. The connection is the only one to its file,
// opened in exclusive locking mode, with WAL and synchronous=FULL: a commit that returned survives
// a power loss, and the WAL-reset race of SQLite before 3.51.3 needs a second connection.
// PATH-reserve keeps 1 MiB of the disk for DiskSpace::kReserved; it is given up when a transaction
// needs it, and taken back before the next one that does not.
class SqliteDatabase {
 public:
  static absl::StatusOr<std::unique_ptr<SqliteDatabase>> Open(const std::string& path);
  ~SqliteDatabase();
  SqliteDatabase(const SqliteDatabase&) = delete;
  SqliteDatabase& operator=(const SqliteDatabase&) = delete;

  // Several statements without parameters, from our own constants only.
  absl::Status Execute(const char* sql);
  // `sql` is one of our own constants or put together from them; values are always bound.
  absl::StatusOr<SqliteStatement> Prepare(const std::string& sql);
  // BEGIN IMMEDIATE, `body`, COMMIT; or ROLLBACK if either failed.
  // `body` runs a second time if the disk was full and the reserve could be given up.
  absl::Status InTransaction(absl::FunctionRef<absl::Status()> body,
                             DiskSpace space = DiskSpace::kFree);
  // Finalizes the cached statements if there are more than `limit`; none may be in use.
  void TrimStatementCache(size_t limit);
  // Rows changed by the last statement.
  int64_t changes() const { return sqlite3_changes(connection_); }

 private:
  SqliteDatabase(sqlite3* connection, std::string reserve_path)
      : connection_(connection), reserve_path_(std::move(reserve_path)) {}
  absl::Status TryTransaction(absl::FunctionRef<absl::Status()> body);
  void TakeReserve();

  sqlite3* connection_;
  const std::string reserve_path_;
  bool reserved_ = false;
  std::map<std::string, sqlite3_stmt*> statements_;
};

}  // namespace ptq

#endif  // PTQ_SERVER_STORE_SQLITE_DATABASE_H_
