// What WatchQuantizationJob and ReadJobLogs send, message by message.
#ifndef PTQ_SERVER_RPC_JOB_STREAMS_H_
#define PTQ_SERVER_RPC_JOB_STREAMS_H_

#include <cstdint>
#include <deque>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/jobs/job_ledger.h"
#include "server/jobs/job_logs.h"
#include "server/rpc/pull_stream.h"

namespace ptq {

// The events of one job for one watcher: a snapshot of now (after_sequence 0 only), then every
// later event once and in order; a heartbeat when nothing else was sent for 15 s; the end after the
// event that ended the job. Thread-compatible.
class WatchSource {
 public:
  // kOutOfRange if `after_sequence` has not happened yet; kNotFound.
  static absl::StatusOr<WatchSource> Create(JobLedger& ledger, const std::string& tenant,
                                            const std::string& id, int64_t after_sequence);

  absl::StatusOr<Pulled> Next(v1::JobEvent& event);

 private:
  WatchSource(JobLedger& ledger, std::string tenant, std::string id, int64_t after_sequence)
      : ledger_(&ledger),
        tenant_(std::move(tenant)),
        id_(std::move(id)),
        sequence_(after_sequence),
        snapshot_first_(after_sequence == 0) {}

  JobLedger* ledger_;
  std::string tenant_;
  std::string id_;
  int64_t sequence_;  // of the last event sent
  bool snapshot_first_;
  std::deque<v1::JobEvent> batch_;
  absl::Time last_sent_ = absl::Now();
};

// The lines of one job's log. Thread-compatible.
class LogSource {
 public:
  LogSource(JobLedger& ledger, std::string tenant, std::string id, const std::string& job_dir,
            int64_t after_line, bool follow)
      : ledger_(&ledger),
        tenant_(std::move(tenant)),
        id_(std::move(id)),
        reader_(job_dir, after_line),
        follow_(follow) {}

  absl::StatusOr<Pulled> Next(v1::LogEntry& entry);

 private:
  JobLedger* ledger_;
  std::string tenant_;
  std::string id_;
  JobLogReader reader_;
  bool follow_;
};

}  // namespace ptq

#endif  // PTQ_SERVER_RPC_JOB_STREAMS_H_
