// google.rpc details that travel inside an absl::Status, as payloads, until the edge packs them.
//
// Code below the RPC layer says what is wrong (which field, which blobs, which resource); only
// rpc/grpc_status.cc knows how that goes over the wire.
#ifndef PTQ_SERVER_ERRORS_STATUS_DETAILS_H_
#define PTQ_SERVER_ERRORS_STATUS_DETAILS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "google/protobuf/message.h"
#include "google/rpc/status.pb.h"
#include "ptq/v1/blob_store.pb.h"

namespace ptq {

// `status` with `detail` attached; a second detail of the same type replaces the first.
absl::Status WithDetail(absl::Status status, const google::protobuf::Message& detail);

// `status` with ErrorInfo{reason, domain "ptq"}. Reasons are UPPER_SNAKE_CASE and part of the API.
absl::Status WithReason(absl::Status status, const std::string& reason);

// kInvalidArgument "field: description" with a BadRequest violation.
absl::Status InvalidField(const std::string& field, const std::string& description);
// Turns any error into one about `field`: keeps code and details, adds a BadRequest violation.
absl::Status AtField(const absl::Status& status, const std::string& field);

// kNotFound with ResourceInfo. `type` is "model", "quantization job" and so on.
absl::Status ResourceNotFound(const std::string& type, const std::string& name);

// kFailedPrecondition with one violation of type MISSING for each blob.
absl::Status MissingBlobsError(const std::vector<v1::Digest>& missing);

// kFailedPrecondition with reason and ResourceInfo: the resource is in the wrong state.
absl::Status WrongState(const std::string& resource, const std::string& reason,
                        const std::string& message);

// `status` with RetryInfo: the client may try again after `delay`.
absl::Status WithRetryDelay(absl::Status status, absl::Duration delay);

// The whole status as google.rpc.Status. Always has an ErrorInfo (reason: the code's name unless
// WithReason set one); the message is cut to 1 KiB. OK gives an empty message.
google::rpc::Status ToRpcStatus(const absl::Status& status);

}  // namespace ptq

#endif  // PTQ_SERVER_ERRORS_STATUS_DETAILS_H_
