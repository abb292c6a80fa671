#include "server/errors/status_details.h"

#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_format.h"
#include "common/status_util.h"
#include "google/rpc/error_details.pb.h"

namespace ptq {
namespace {

constexpr size_t kMaxMessageBytes = 1024;
constexpr char kTypePrefix[] = "type.googleapis.com/";

std::string TypeUrl(const google::protobuf::Message& detail) {
  return kTypePrefix + detail.GetTypeName();
}

// At most `limit` bytes, cut between characters.
std::string Truncate(const std::string& text, size_t limit) {
  if (text.size() <= limit) return text;
  size_t end = limit - 3;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

google::rpc::ErrorInfo MakeErrorInfo(const std::string& reason) {
  google::rpc::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("ptq");
  return info;
}

}  // namespace

absl::Status WithDetail(absl::Status status, const google::protobuf::Message& detail) {
  status.SetPayload(TypeUrl(detail), absl::Cord(detail.SerializeAsString()));
  return status;
}

absl::Status WithReason(absl::Status status, const std::string& reason) {
  return WithDetail(std::move(status), MakeErrorInfo(reason));
}

absl::Status InvalidField(const std::string& field, const std::string& description) {
  google::rpc::BadRequest bad_request;
  auto* violation = bad_request.add_field_violations();
  violation->set_field(field);
  violation->set_description(Truncate(description, kMaxMessageBytes));
  return WithDetail(
      WithReason(absl::InvalidArgumentError(field + ": " + description), "INVALID_FIELD"),
      bad_request);
}

absl::Status AtField(const absl::Status& status, const std::string& field) {
  if (status.ok()) return status;
  google::rpc::BadRequest bad_request;
  auto* violation = bad_request.add_field_violations();
  violation->set_field(field);
  violation->set_description(Truncate(Message(status), kMaxMessageBytes));
  return WithDetail(status, bad_request);
}

absl::Status ResourceNotFound(const std::string& type, const std::string& name) {
  google::rpc::ResourceInfo info;
  info.set_resource_type(type);
  info.set_resource_name(name);
  info.set_description("it does not exist");
  return WithDetail(
      WithReason(absl::NotFoundError(absl::StrFormat("there is no %s %s", type, name)),
                 "RESOURCE_NOT_FOUND"),
      info);
}

absl::Status MissingBlobsError(const std::vector<v1::Digest>& missing) {
  google::rpc::PreconditionFailure failure;
  for (const v1::Digest& digest : missing) {
    auto* violation = failure.add_violations();
    violation->set_type("MISSING");
    violation->set_subject(absl::StrFormat("blobs/%s/%d", digest.hash(), digest.size_bytes()));
    violation->set_description("upload it with ByteStream.Write first");
  }
  return WithDetail(
      WithReason(absl::FailedPreconditionError(absl::StrFormat(
                     "%d of the named blobs are not on the server (the first: %s); upload them "
                     "with ByteStream.Write first",
                     missing.size(), missing.empty() ? "" : missing[0].hash())),
                 "BLOBS_MISSING"),
      failure);
}

absl::Status WrongState(const std::string& resource, const std::string& reason,
                        const std::string& message) {
  google::rpc::ResourceInfo info;
  info.set_resource_name(resource);
  info.set_description(message);
  return WithDetail(WithReason(absl::FailedPreconditionError(message), reason), info);
}

absl::Status WithRetryDelay(absl::Status status, absl::Duration delay) {
  google::rpc::RetryInfo info;
  info.mutable_retry_delay()->set_seconds(absl::ToInt64Seconds(delay));
  return WithDetail(std::move(status), info);
}

google::rpc::Status ToRpcStatus(const absl::Status& status) {
  google::rpc::Status result;
  if (status.ok()) return result;
  result.set_code(static_cast<int>(status.code()));
  result.set_message(Truncate(Message(status), kMaxMessageBytes));
  bool has_error_info = false;
  status.ForEachPayload([&](auto type_url, const absl::Cord& payload) {
    auto* any = result.add_details();
    any->set_type_url(std::string(type_url.data(), type_url.size()));
    any->set_value(std::string(payload));
    has_error_info |= any->type_url() == kTypePrefix + google::rpc::ErrorInfo().GetTypeName();
  });
  if (!has_error_info) {
    result.add_details()->PackFrom(MakeErrorInfo(StatusCodeName(status.code())));
  }
  return result;
}

}  // namespace ptq
