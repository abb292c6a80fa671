// The one place where absl::Status becomes grpc::Status.
#ifndef PTQ_SERVER_RPC_GRPC_STATUS_H_
#define PTQ_SERVER_RPC_GRPC_STATUS_H_

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace ptq {

// Code, message (at most 1 KiB), and google.rpc.Status with its details in grpc-status-details-bin.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace ptq

#endif  // PTQ_SERVER_RPC_GRPC_STATUS_H_
