#include "client/exit_status.h"

#include <cstdlib>
#include <string>

#include "absl/strings/cord.h"

namespace ptq {
namespace {

constexpr char kPayload[] = "ptq/exit_status";

}  // namespace

ExitStatus ExitStatusFor(const absl::Status& status) {
  if (status.ok()) return ExitStatus::kDone;
  if (const auto payload = status.GetPayload(kPayload); payload.has_value()) {
    return static_cast<ExitStatus>(std::atoi(std::string(*payload).c_str()));
  }
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
      return ExitStatus::kRefused;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return ExitStatus::kUnreachable;
    case absl::StatusCode::kCancelled:
      return ExitStatus::kInterrupted;
    default:
      return ExitStatus::kError;
  }
}

absl::Status WithExitStatus(absl::Status status, ExitStatus exit_status) {
  if (!status.ok()) {
    status.SetPayload(kPayload, absl::Cord(std::to_string(static_cast<int>(exit_status))));
  }
  return status;
}

absl::Status LocalError(absl::Status status) {
  return WithExitStatus(std::move(status), ExitStatus::kError);
}

}  // namespace ptq
