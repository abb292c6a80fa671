#include "server/rpc/job_streams.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "server/errors/status_details.h"
#include "server/jobs/job_state.h"
#include "server/store/proto_time.h"

namespace ptq {
namespace {

constexpr absl::Duration kHeartbeatInterval = absl::Seconds(15);
constexpr int kBatchSize = 64;

}  // namespace

absl::StatusOr<WatchSource> WatchSource::Create(JobLedger& ledger, const std::string& tenant,
                                                const std::string& id, int64_t after_sequence) {
  if (after_sequence < 0) return InvalidField("after_sequence", "is negative");
  PTQ_ASSIGN_OR_RETURN(const JobRecord record, ledger.Get(tenant, id));
  if (after_sequence > record.last_sequence) {
    return WithReason(absl::OutOfRangeError(absl::StrFormat(
                          "after_sequence %d has not happened yet; the last event is %d",
                          after_sequence, record.last_sequence)),
                      "SEQUENCE_UNKNOWN");
  }
  return WatchSource(ledger, tenant, id, after_sequence);
}

absl::StatusOr<Pulled> WatchSource::Next(v1::JobEvent& event) {
  const absl::Time now = absl::Now();
  if (batch_.empty()) {
    PTQ_ASSIGN_OR_RETURN(const JobRecord record, ledger_->Get(tenant_, id_));
    if (snapshot_first_) {
      snapshot_first_ = false;
      event.Clear();
      event.set_sequence(record.last_sequence);
      *event.mutable_time() = ToProtoTime(now);
      *event.mutable_snapshot() = record.job;
      sequence_ = record.last_sequence;
      last_sent_ = now;
      return Pulled::kMessage;
    }
    if (sequence_ >= record.last_sequence) {
      if (IsEnded(record.job.state())) return Pulled::kEnd;
      if (now - last_sent_ < kHeartbeatInterval) return Pulled::kNothingYet;
      event.Clear();
      event.set_sequence(sequence_);
      *event.mutable_time() = ToProtoTime(now);
      event.mutable_heartbeat();
      last_sent_ = now;
      return Pulled::kMessage;
    }
    PTQ_ASSIGN_OR_RETURN(auto events,
                         ledger_->store().ReadEvents(tenant_, id_, sequence_, kBatchSize));
    if (events.empty()) return absl::DataLossError("job database: events are missing");
    for (v1::JobEvent& stored : events) {
      if (stored.has_snapshot()) {
        JobLedger::CompleteSnapshot(record.job, *stored.mutable_snapshot());
      }
      batch_.push_back(std::move(stored));
    }
  }
  event = std::move(batch_.front());
  batch_.pop_front();
  sequence_ = event.sequence();
  last_sent_ = now;
  return Pulled::kMessage;
}

absl::StatusOr<Pulled> LogSource::Next(v1::LogEntry& entry) {
  // The state first: what a worker wrote before its job ended is then read too.
  PTQ_ASSIGN_OR_RETURN(const JobRecord record, ledger_->Get(tenant_, id_));
  const bool ended = IsEnded(record.job.state());
  PTQ_ASSIGN_OR_RETURN(auto next, reader_.Next(ended || !follow_));
  if (next.has_value()) {
    entry = *std::move(next);
    return Pulled::kMessage;
  }
  return ended || !follow_ ? Pulled::kEnd : Pulled::kNothingYet;
}

}  // namespace ptq
