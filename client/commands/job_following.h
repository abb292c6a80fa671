// Watching a job to its end in a command: display, Ctrl-C, and what is said at the end.
#ifndef PTQ_CLIENT_COMMANDS_JOB_FOLLOWING_H_
#define PTQ_CLIENT_COMMANDS_JOB_FOLLOWING_H_

#include <ostream>
#include <string>

#include "absl/status/statusor.h"
#include "client/console.h"
#include "client/exit_status.h"
#include "client/session.h"

namespace ptq {

// How a job is shown while it runs.
struct FollowOptions {
  std::ostream* out = nullptr;  // progress goes here
  TerminalTraits terminal;
  bool json = false;  // one event a line instead
};

// Waits for the job's end and returns its last state. Ctrl-C detaches: it prints how to watch
// again, waits a moment for a second Ctrl-C, which cancels the job, and returns kCancelled with
// everything said. An InterruptListener::Handler that cancels session.canceller() must be in place.
absl::StatusOr<v1::QuantizationJob> FollowJob(Session& session, const std::string& name,
                                              const FollowOptions& options);

// 0 or 1 by the job's end. Says on standard error why a job did not succeed.
ExitStatus ReportEnd(Session& session, const v1::QuantizationJob& job);

// "Succeeded in 2:41." and the report's summary; leaves out what the server does not tell.
std::string SuccessText(Session& session, const v1::QuantizationJob& job);

}  // namespace ptq

#endif  // PTQ_CLIENT_COMMANDS_JOB_FOLLOWING_H_
