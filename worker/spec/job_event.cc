#include "worker/spec/job_event.h"

#include <array>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "common/time.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

// In the order of the enum.
constexpr std::array<const char*, 7> kTypeNames = {"started",   "phase",  "block_done", "log",
                                                   "succeeded", "failed", "cancelled"};

absl::StatusOr<JobEvent::Type> ParseType(const std::string& name) {
  for (size_t i = 0; i < kTypeNames.size(); ++i) {
    if (name == kTypeNames[i]) return static_cast<JobEvent::Type>(i);
  }
  return absl::InvalidArgumentError("unknown event type " + Quote(name));
}

Json LossToJson(const std::optional<double>& loss) {
  return loss.has_value() ? Json(*loss) : Json(nullptr);
}

absl::StatusOr<std::optional<double>> LossFromJson(const Json& json, const std::string& field) {
  if (json.contains(field) && json.at(field).is_null()) return std::nullopt;
  PTQ_ASSIGN_OR_RETURN(const double loss, JsonDouble(json, field));
  return std::make_optional(loss);
}

absl::Status ReadStarted(const Json& json, JobEvent* event) {
  PTQ_ASSIGN_OR_RETURN(event->blocks_total, JsonInt(json, "blocks_total"));
  PTQ_ASSIGN_OR_RETURN(event->blocks_resumed, JsonInt(json, "blocks_resumed"));
  PTQ_ASSIGN_OR_RETURN(event->device, JsonString(json, "device"));
  return absl::OkStatus();
}

absl::Status ReadPhase(const Json& json, JobEvent* event) {
  PTQ_ASSIGN_OR_RETURN(event->phase, JsonString(json, "phase"));
  PTQ_ASSIGN_OR_RETURN(event->phase_fraction, JsonDouble(json, "phase_fraction"));
  return absl::OkStatus();
}

absl::Status ReadPeaks(const Json& json, JobEvent* event) {
  PTQ_ASSIGN_OR_RETURN(event->host_peak_bytes, JsonInt(json, "host_peak_bytes"));
  PTQ_ASSIGN_OR_RETURN(event->device_peak_bytes, JsonInt(json, "device_peak_bytes"));
  return absl::OkStatus();
}

absl::Status ReadBlockDone(const Json& json, JobEvent* event) {
  PTQ_ASSIGN_OR_RETURN(event->block, JsonInt(json, "block"));
  PTQ_ASSIGN_OR_RETURN(event->block_name, JsonString(json, "block_name"));
  PTQ_ASSIGN_OR_RETURN(event->seconds, JsonDouble(json, "seconds"));
  PTQ_ASSIGN_OR_RETURN(event->loss_first, LossFromJson(json, "loss_first"));
  PTQ_ASSIGN_OR_RETURN(event->loss_best, LossFromJson(json, "loss_best"));
  return ReadPeaks(json, event);
}

absl::Status ReadLog(const Json& json, JobEvent* event) {
  PTQ_ASSIGN_OR_RETURN(event->severity, JsonString(json, "severity"));
  PTQ_ASSIGN_OR_RETURN(event->message, JsonString(json, "message"));
  return absl::OkStatus();
}

absl::Status ReadSucceeded(const Json& json, JobEvent* event) {
  PTQ_ASSIGN_OR_RETURN(event->result_digest, JsonString(json, "result_digest"));
  return ReadPeaks(json, event);
}

absl::Status ReadFailed(const Json& json, JobEvent* event) {
  PTQ_ASSIGN_OR_RETURN(const std::string code, JsonString(json, "code"));
  event->code = StatusCodeFromName(code);
  PTQ_ASSIGN_OR_RETURN(event->message, JsonString(json, "message"));
  return absl::OkStatus();
}

absl::Status ReadOwnFields(const Json& json, JobEvent* event) {
  switch (event->type) {
    case JobEvent::Type::kStarted:
      return ReadStarted(json, event);
    case JobEvent::Type::kPhase:
      return ReadPhase(json, event);
    case JobEvent::Type::kBlockDone:
      return ReadBlockDone(json, event);
    case JobEvent::Type::kLog:
      return ReadLog(json, event);
    case JobEvent::Type::kSucceeded:
      return ReadSucceeded(json, event);
    case JobEvent::Type::kFailed:
      return ReadFailed(json, event);
    case JobEvent::Type::kCancelled:
      return absl::OkStatus();
  }
  return absl::OkStatus();
}

}  // namespace

const char* JobEventTypeName(JobEvent::Type type) { return kTypeNames[static_cast<size_t>(type)]; }

Json JobEventToJson(const JobEvent& event) {
  Json json = Json::object();
  json["sequence"] = event.sequence;
  json["time"] = FormatRfc3339(event.time);
  json["type"] = JobEventTypeName(event.type);
  switch (event.type) {
    case JobEvent::Type::kStarted:
      json["blocks_total"] = event.blocks_total;
      json["blocks_resumed"] = event.blocks_resumed;
      json["device"] = event.device;
      break;
    case JobEvent::Type::kPhase:
      json["phase"] = event.phase;
      json["phase_fraction"] = event.phase_fraction;
      break;
    case JobEvent::Type::kBlockDone:
      json["block"] = event.block;
      json["block_name"] = event.block_name;
      json["seconds"] = event.seconds;
      json["loss_first"] = LossToJson(event.loss_first);
      json["loss_best"] = LossToJson(event.loss_best);
      json["host_peak_bytes"] = event.host_peak_bytes;
      json["device_peak_bytes"] = event.device_peak_bytes;
      break;
    case JobEvent::Type::kLog:
      json["severity"] = event.severity;
      json["message"] = event.message;
      break;
    case JobEvent::Type::kSucceeded:
      json["result_digest"] = event.result_digest;
      json["host_peak_bytes"] = event.host_peak_bytes;
      json["device_peak_bytes"] = event.device_peak_bytes;
      break;
    case JobEvent::Type::kFailed:
      json["code"] = StatusCodeName(event.code);
      json["message"] = event.message;
      break;
    case JobEvent::Type::kCancelled:
      break;
  }
  return json;
}

absl::StatusOr<JobEvent> JobEventFromJson(const Json& json) {
  JobEvent event;
  PTQ_ASSIGN_OR_RETURN(event.sequence, JsonInt(json, "sequence"));
  PTQ_ASSIGN_OR_RETURN(const std::string time, JsonString(json, "time"));
  PTQ_ASSIGN_OR_RETURN(event.time, ParseRfc3339(time));
  PTQ_ASSIGN_OR_RETURN(const std::string type, JsonString(json, "type"));
  PTQ_ASSIGN_OR_RETURN(event.type, ParseType(type));
  PTQ_RETURN_IF_ERROR(ReadOwnFields(json, &event));
  return event;
}

}  // namespace ptq
