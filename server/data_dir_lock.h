// One server a data folder.
#ifndef PTQ_SERVER_DATA_DIR_LOCK_H_
#define PTQ_SERVER_DATA_DIR_LOCK_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace ptq {

// Holds DIR/lock for its lifetime; the kernel lets go of it when the process dies, however it dies.
class DataDirLock {
 public:
  // kAlreadyExists if another server holds it, naming its process.
  static absl::StatusOr<std::unique_ptr<DataDirLock>> Take(const std::string& data_dir);
  ~DataDirLock();
  DataDirLock(const DataDirLock&) = delete;
  DataDirLock& operator=(const DataDirLock&) = delete;

 private:
  explicit DataDirLock(int fd) : fd_(fd) {}
  const int fd_;
};

}  // namespace ptq

#endif  // PTQ_SERVER_DATA_DIR_LOCK_H_
