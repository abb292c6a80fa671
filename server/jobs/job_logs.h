// The log of a job: what its workers wrote on standard error, one file an attempt.
#ifndef PTQ_SERVER_JOBS_JOB_LOGS_H_
#define PTQ_SERVER_JOBS_JOB_LOGS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "ptq/v1/quantization_service.pb.h"

namespace ptq {

// "DIR/jobs/{id}/logs/attempt-0001.log".
std::string LogFolder(const std::string& job_dir);
std::string LogPath(const std::string& job_dir, int attempt);

// The end of the last non-empty line of a log, for messages; empty if there is none.
std::string LastLogLine(const std::string& path);

// Reads entry after entry while the files grow. Thread-compatible.
class JobLogReader {
 public:
  // `after_line`: lines to skip, counted from the first attempt's first line.
  JobLogReader(std::string job_dir, int64_t after_line)
      : job_dir_(std::move(job_dir)), after_line_(after_line) {}

  // The next entry; nothing if none is complete now. With `all_written` a last line without a
  // newline counts as complete. Lines are cut at 16 KiB.
  absl::StatusOr<std::optional<v1::LogEntry>> Next(bool all_written);

 private:
  absl::StatusOr<bool> Fill();
  v1::LogEntry MakeEntry(const std::string& text) const;

  const std::string job_dir_;
  const int64_t after_line_;
  int attempt_ = 0;  // whose file is being read; 0: none yet
  int64_t offset_ = 0;
  int64_t line_ = 0;
  std::string buffer_;
};

}  // namespace ptq

#endif  // PTQ_SERVER_JOBS_JOB_LOGS_H_
