// request_id: from a create request to the key under which the store remembers it.
#ifndef PTQ_SERVER_RPC_REQUEST_KEY_H_
#define PTQ_SERVER_RPC_REQUEST_KEY_H_

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/sha256.h"
#include "server/errors/status_details.h"
#include "server/jobs/resource_names.h"
#include "server/store/job_store.h"

namespace ptq {

// Nothing without a request_id; kInvalidArgument if it is not a UUID. Two requests are the same if
// all their other fields are.
template <typename Request>
absl::StatusOr<std::optional<RequestKey>> MakeRequestKey(const std::string& method,
                                                         const Request& request) {
  if (request.request_id().empty()) return std::nullopt;
  if (!IsUuid(request.request_id())) return InvalidField("request_id", "must be a UUID");
  Request body = request;
  body.clear_request_id();
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);  // maps in key order
    body.SerializeToCodedStream(&coded);
  }
  return RequestKey{method, request.request_id(), Sha256Hex(bytes)};
}

}  // namespace ptq

#endif  // PTQ_SERVER_RPC_REQUEST_KEY_H_
