// What ptq-worker says on standard output while it works: one JSON object a line.
#ifndef PTQ_WORKER_SPEC_JOB_EVENT_H_
#define PTQ_WORKER_SPEC_JOB_EVENT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/json.h"

namespace ptq {

// Fields beyond the first three are those of `type`; the others stay empty.
struct JobEvent {
  enum class Type { kStarted, kPhase, kBlockDone, kLog, kSucceeded, kFailed, kCancelled };

  int64_t sequence = 0;  // 1, 2, 3 ... within one run of the worker
  absl::Time time;
  Type type = Type::kLog;

  // started
  int64_t blocks_total = 0;
  int64_t blocks_resumed = 0;  // records of an earlier run that are used as they are
  std::string device;          // "cpu", "cuda:0"
  // phase, also while it advances: "load", "fisher", "observe", "quantize", "export", "evaluate"
  std::string phase;
  double phase_fraction = 0;  // 0..1 of this phase (of the current block for "quantize")
  // block_done
  int64_t block = 0;  // 0-based
  std::string block_name;
  double seconds = 0;
  std::optional<double> loss_first;
  std::optional<double> loss_best;
  // log
  std::string severity;  // "info", "warning"
  std::string message;   // log, failed
  // failed
  absl::StatusCode code = absl::StatusCode::kOk;
  // succeeded
  std::string result_digest;
  // block_done, succeeded
  int64_t host_peak_bytes = 0;
  int64_t device_peak_bytes = 0;
};

const char* JobEventTypeName(JobEvent::Type type);  // "block_done"
// Only the type's own fields are written. `failed` carries "code": "INVALID_ARGUMENT" and
// "message".
Json JobEventToJson(const JobEvent& event);
absl::StatusOr<JobEvent> JobEventFromJson(const Json& json);

}  // namespace ptq

#endif  // PTQ_WORKER_SPEC_JOB_EVENT_H_
