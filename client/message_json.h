// API messages as the JSON that scripts read: snake_case keys in the proto's order, every field
// present (null where unset), integers as numbers, times as RFC 3339, durations as seconds under a
// key ending in _seconds, enums and status codes as their names.
#ifndef PTQ_CLIENT_MESSAGE_JSON_H_
#define PTQ_CLIENT_MESSAGE_JSON_H_

#include <google/protobuf/message.h>
#include <google/protobuf/timestamp.pb.h>

#include "absl/time/time.h"
#include "common/json.h"
#include "ptq/v1/quantization_service.pb.h"

namespace ptq {

// Any message. Of a oneof only the member that is set appears. A job's job_spec_json becomes the
// object "job_spec".
Json MessageToJson(const google::protobuf::Message& message);

// {"sequence", "time", "type"} and the type's own fields: "snapshot" has "job", "block" has the
// block's, "heartbeat" has none.
Json EventToJson(const v1::JobEvent& event);

absl::Time ToTime(const google::protobuf::Timestamp& timestamp);

}  // namespace ptq

#endif  // PTQ_CLIENT_MESSAGE_JSON_H_
