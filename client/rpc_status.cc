#include "client/rpc_status.h"

#include <map>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/status_util.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace ptq {
namespace {

constexpr char kReasonPayload[] = "ptq/reason";
constexpr char kAdvisedPayload[] = "ptq/advised";

struct Details {
  std::string reason;
  std::vector<std::string> violations;
  bool present = false;
};

Details DecodeDetails(const grpc::Status& status) {
  Details details;
  google::rpc::Status rich;
  if (status.error_details().empty() || !rich.ParseFromString(status.error_details())) {
    return details;
  }
  details.present = true;
  for (const google::protobuf::Any& any : rich.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest request;
    if (any.UnpackTo(&info)) {
      details.reason = info.reason();
    } else if (any.UnpackTo(&request)) {
      for (const auto& violation : request.field_violations()) {
        // A field without a flag, such as a manifest's, says nothing to people. Descriptions come
        // with or without the field in front.
        const std::string flag = FlagForField(violation.field());
        std::string text = WithFlagNames(violation.description());
        if (!flag.empty() && !absl::StartsWith(text, flag)) text = flag + ": " + text;
        details.violations.push_back(text);
      }
    }
  }
  return details;
}

absl::Status Advised(absl::StatusCode code, const std::string& message) {
  absl::Status status(code, message);
  status.SetPayload(kAdvisedPayload, absl::Cord("1"));
  return status;
}

std::string HintFor(const absl::Status& status) {
  // What is said about the server must come from the server.
  if (ErrorReason(status).empty()) {
    return absl::IsResourceExhausted(status) ? "make room and run the same command again" : "";
  }
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      return "`ptq list` shows the jobs";
    case absl::StatusCode::kResourceExhausted:
      return "free space (`ptq delete JOB` removes a job's files) and run the same command again";
    case absl::StatusCode::kUnimplemented:
      return "`ptq capabilities` shows what this server can do";
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDataLoss:
      return "the server's log says more";
    case absl::StatusCode::kAborted:
      return "run the same command again";
    case absl::StatusCode::kUnavailable:
      return "run the same command again in a moment";
    default:
      return "";
  }
}

}  // namespace

bool IsTransportError(const grpc::Status& status) {
  return !status.ok() && status.error_details().empty();
}

absl::Status FromRpcStatus(const grpc::Status& status, const std::string& server) {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  const Details details = DecodeDetails(status);
  if (!details.present) {
    // The transport's words name sockets and frames; people need to know what to start or to name.
    switch (code) {
      case absl::StatusCode::kUnavailable:
        return Advised(code, "the server at " + server +
                                 " cannot be reached: start it with `ptqd --data-dir DIR`, or name "
                                 "another one with --server HOST:PORT or in PTQ_SERVER");
      case absl::StatusCode::kDeadlineExceeded:
        return Advised(code, "the server at " + server +
                                 " does not answer in time: look at its log, or run the same "
                                 "command again");
      case absl::StatusCode::kUnimplemented:
        return Advised(code, "the server at " + server +
                                 " does not know this request: check with `ptq capabilities` that "
                                 "it is a ptqd of this version");
      default:
        break;
    }
  }
  if (details.reason == "BLOBS_MISSING") {
    return Advised(code,
                   "the server has removed files of this model or dataset meanwhile: run the "
                   "same command again to upload them");
  }
  std::string message = details.violations.empty() ? WithFlagNames(status.error_message())
                                                   : absl::StrJoin(details.violations, "; ");
  if (message.empty()) message = "the server reported " + StatusCodeName(code);
  absl::Status result(code, message);
  result.SetPayload(kReasonPayload,
                    absl::Cord(details.reason.empty() ? StatusCodeName(code) : details.reason));
  return result;
}

std::string ErrorReason(const absl::Status& status) {
  const auto payload = status.GetPayload(kReasonPayload);
  return payload.has_value() ? std::string(*payload) : "";
}

std::string FlagForField(const std::string& field_path) {
  static const auto& flags = *new std::map<std::string, std::string>{
      {"model", "MODEL_DIR"},
      {"calibration_dataset", "--calibration"},
      {"evaluation_dataset", "--evaluation"},
      {"calibration", "--calibration"},
      {"evaluation", "--evaluation"},
      {"evaluation.window", "--evaluation-window"},
      {"evaluation.samples", "--evaluation-samples"},
      {"evaluation_window", "--evaluation-window"},
      {"evaluation_samples", "--evaluation-samples"},
      {"samples", "--samples"},
      {"sequence_length", "--sequence-length"},
      {"algorithm", "--algorithm"},
      {"preset", "--preset"},
      {"scheme", "--scheme"},
      {"scheme.name", "--scheme"},
      {"bits", "--bits"},
      {"group_size", "--group-size"},
      {"asymmetric", "--asymmetric"},
      {"recipe", "--recipe"},
      {"iterations", "--iterations"},
      {"batch_size", "--batch-size"},
      {"fisher_tokens", "--fisher-tokens"},
      {"tuning_precision", "--tuning-precision"},
      {"seed", "--seed"},
      {"device", "--device"},
      {"low_memory", "--low-memory"},
      {"format", "--format"},
      {"output_formats", "--format"},
      {"rule", "--rule"},
      {"rules", "--rule"},
      {"allow_split_fused_sets", "--allow-split-fused-sets"},
      {"scale_rule", "--scale-rule"},
      {"labels", "--label"},
      {"request_id", "--request-id"},
      {"filter", "--filter"},
  };
  std::vector<std::string> parts;
  for (std::string part : std::vector<std::string>(absl::StrSplit(field_path, '.'))) {
    part = part.substr(0, part.find('['));
    // Whatever is wrong inside a rule, the flag is --rule.
    if (part == "rules" || part == "rule" || part == "labels") return flags.at(part);
    parts.push_back(part);
  }
  if (parts.size() >= 2) {
    const auto pair = flags.find(parts[parts.size() - 2] + "." + parts.back());
    if (pair != flags.end()) return pair->second;
  }
  // "source.manifest.files" and the like are no flags; a job's fields lie below "spec" or stand
  // alone.
  if (parts.size() > 1 && parts[0] != "spec") return "";
  const auto flag = flags.find(parts.back());
  return flag == flags.end() ? "" : flag->second;
}

std::string WithFlagNames(const std::string& message) {
  if (absl::StartsWith(message, "rule \"")) return "--" + message;
  const size_t colon = message.find(": ");
  if (colon == std::string::npos || colon > 60) return message;
  const std::string flag = FlagForField(message.substr(0, colon));
  if (flag.empty()) return message;
  return flag + message.substr(colon);
}

std::string ErrorSentence(const absl::Status& status) {
  const std::string message = Message(status);
  if (status.GetPayload(kAdvisedPayload).has_value()) return message;
  const std::string hint = HintFor(status);
  // A server's sentence that already names a command needs no second piece of advice.
  if (hint.empty() || message.find('`') != std::string::npos) return message;
  const std::string body =
      absl::EndsWith(message, ".") ? message.substr(0, message.size() - 1) : message;
  return body + "; " + hint;
}

}  // namespace ptq
