// What a call's result means to a person: google.rpc details become one sentence, field paths
// become flags, and the transport's own words are replaced.
#ifndef PTQ_CLIENT_RPC_STATUS_H_
#define PTQ_CLIENT_RPC_STATUS_H_

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"

namespace ptq {

// The inverse of the server's conversion. `server` is HOST:PORT as given, for the message of a
// server that cannot be reached. The ErrorInfo's reason stays readable by ErrorReason.
absl::Status FromRpcStatus(const grpc::Status& status, const std::string& server);

// "REQUEST_ID_REUSED" and the like; "" if the server named none.
std::string ErrorReason(const absl::Status& status);

// True if the error came from the transport rather than from the server's code.
bool IsTransportError(const grpc::Status& status);

// "--bits" for "spec.scheme.bits" and for job.json's "bits"; "" for a field without a flag.
std::string FlagForField(const std::string& field_path);

// A message that starts with a key of job.json ("bits: 9 is not in 2..8") with the flag instead.
std::string WithFlagNames(const std::string& message);

// What `ptq` prints after "ptq: ": the message and, where the message alone does not say it, what
// to do next.
std::string ErrorSentence(const absl::Status& status);

}  // namespace ptq

#endif  // PTQ_CLIENT_RPC_STATUS_H_
