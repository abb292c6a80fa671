// The exit statuses of `ptq`, which users' scripts rely on, and which error leads to which.
#ifndef PTQ_CLIENT_EXIT_STATUS_H_
#define PTQ_CLIENT_EXIT_STATUS_H_

#include "absl/status/status.h"

namespace ptq {

enum class ExitStatus {
  kDone = 0,
  kJobFailed = 1,      // the job failed or was cancelled
  kRefused = 2,        // wrong usage, or input refused at submission
  kUnreachable = 3,    // the server cannot be reached
  kError = 4,          // local disk, digest mismatch, the server's internal error or quota
  kInterrupted = 130,  // Ctrl-C
};

// By code, unless WithExitStatus said otherwise: INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS,
// PERMISSION_DENIED, UNAUTHENTICATED, FAILED_PRECONDITION, OUT_OF_RANGE and UNIMPLEMENTED are
// refusals, UNAVAILABLE and DEADLINE_EXCEEDED an unreachable server, CANCELLED an interruption, the
// rest errors.
ExitStatus ExitStatusFor(const absl::Status& status);

// `status` with an exit status that its code alone would not give; OK stays OK.
absl::Status WithExitStatus(absl::Status status, ExitStatus exit_status);

// For the local disk, whose codes (no such folder, permission denied, disk full) would read as
// refusals.
absl::Status LocalError(absl::Status status);

}  // namespace ptq

#endif  // PTQ_CLIENT_EXIT_STATUS_H_
