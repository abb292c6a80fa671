#include "client/message_json.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/duration.pb.h>

#include <cmath>
#include <map>
#include <string>
#include <utility>

#include "common/status_util.h"
#include "common/time.h"
#include "google/rpc/status.pb.h"

namespace ptq {
namespace {

using google::protobuf::FieldDescriptor;
using ProtoMessage = google::protobuf::Message;
using google::protobuf::Reflection;

Json NumberOrNull(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

// One value: of a singular field, or the `index`-th of a repeated one.
Json ValueToJson(const ProtoMessage& message, const FieldDescriptor* field, int index) {
  const Reflection* reflection = message.GetReflection();
  const bool repeated = field->is_repeated();
#define PTQ_GET(TYPE)                                              \
  (repeated ? reflection->GetRepeated##TYPE(message, field, index) \
            : reflection->Get##TYPE(message, field))
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return Json(PTQ_GET(Int32));
    case FieldDescriptor::CPPTYPE_INT64:
      return Json(PTQ_GET(Int64));
    case FieldDescriptor::CPPTYPE_UINT32:
      return Json(PTQ_GET(UInt32));
    case FieldDescriptor::CPPTYPE_UINT64:
      return Json(PTQ_GET(UInt64));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return NumberOrNull(PTQ_GET(Double));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return NumberOrNull(PTQ_GET(Float));
    case FieldDescriptor::CPPTYPE_BOOL:
      return Json(PTQ_GET(Bool));
    case FieldDescriptor::CPPTYPE_ENUM:
      return Json(PTQ_GET(Enum)->name());
    case FieldDescriptor::CPPTYPE_STRING:
      return Json(PTQ_GET(String));
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return MessageToJson(PTQ_GET(Message));
  }
#undef PTQ_GET
  return nullptr;
}

Json MapToJson(const ProtoMessage& message, const FieldDescriptor* field) {
  // Protobuf's maps have no order; scripts compare text.
  std::map<std::string, Json> entries;
  const Reflection* reflection = message.GetReflection();
  for (int i = 0; i < reflection->FieldSize(message, field); ++i) {
    const ProtoMessage& entry = reflection->GetRepeatedMessage(message, field, i);
    const Json key = ValueToJson(entry, entry.GetDescriptor()->map_key(), 0);
    entries[key.is_string() ? key.get<std::string>() : key.dump()] =
        ValueToJson(entry, entry.GetDescriptor()->map_value(), 0);
  }
  Json sorted = Json::object();
  for (auto& [key, value] : entries) sorted[key] = std::move(value);
  return sorted;
}

Json FieldToJson(const ProtoMessage& message, const FieldDescriptor* field) {
  if (field->is_map()) return MapToJson(message, field);
  if (field->is_repeated()) {
    Json array = Json::array();
    const int size = message.GetReflection()->FieldSize(message, field);
    for (int i = 0; i < size; ++i) array.push_back(ValueToJson(message, field, i));
    return array;
  }
  if (field->has_presence() && !message.GetReflection()->HasField(message, field)) return nullptr;
  return ValueToJson(message, field, 0);
}

}  // namespace

absl::Time ToTime(const google::protobuf::Timestamp& timestamp) {
  return absl::FromUnixSeconds(timestamp.seconds()) + absl::Nanoseconds(timestamp.nanos());
}

Json MessageToJson(const ProtoMessage& message) {
  if (const auto* time = dynamic_cast<const google::protobuf::Timestamp*>(&message)) {
    return FormatRfc3339(ToTime(*time));
  }
  if (const auto* duration = dynamic_cast<const google::protobuf::Duration*>(&message)) {
    return static_cast<double>(duration->seconds()) + 1e-9 * duration->nanos();
  }
  if (const auto* status = dynamic_cast<const google::rpc::Status*>(&message)) {
    return Json{{"code", StatusCodeName(static_cast<absl::StatusCode>(status->code()))},
                {"message", status->message()}};
  }
  Json object = Json::object();
  const google::protobuf::Descriptor* descriptor = message.GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor* field = descriptor->field(i);
    if (field->real_containing_oneof() != nullptr &&
        !message.GetReflection()->HasField(message, field)) {
      continue;
    }
    std::string key = field->name();
    if (key == "job_spec_json") {
      const auto spec = ParseJson(message.GetReflection()->GetString(message, field));
      object["job_spec"] = spec.ok() ? *spec : Json(nullptr);
      continue;
    }
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE &&
        field->message_type() == google::protobuf::Duration::descriptor()) {
      key += "_seconds";
    }
    object[key] = FieldToJson(message, field);
  }
  return object;
}

Json EventToJson(const v1::JobEvent& event) {
  Json object = Json::object();
  object["sequence"] = event.sequence();
  object["time"] = FormatRfc3339(ToTime(event.time()));
  switch (event.event_case()) {
    case v1::JobEvent::kSnapshot:
      object["type"] = "snapshot";
      object["job"] = MessageToJson(event.snapshot());
      break;
    case v1::JobEvent::kBlock: {
      object["type"] = "block";
      const Json block = MessageToJson(event.block());
      for (const auto& [key, value] : block.items()) object[key] = value;
      break;
    }
    default:
      object["type"] = "heartbeat";
      break;
  }
  return object;
}

}  // namespace ptq
