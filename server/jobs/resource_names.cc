#include "server/jobs/resource_names.h"

#include <cctype>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/sha256.h"
#include "common/status_macros.h"
#include "server/errors/status_details.h"

namespace ptq {
namespace {

constexpr char kDefaultTenant[] = "default";
constexpr size_t kMaxNameBytes = 256;

bool IsId(const std::string& text) {
  if (text.empty() || text.size() > 63) return false;
  for (const char c : text) {
    if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-')) return false;
  }
  return true;
}

std::vector<std::string> Split(const std::string& name) {
  if (name.size() > kMaxNameBytes) return {};
  return absl::StrSplit(name, '/');
}

absl::Status CheckTenant(const std::string& tenant) {
  if (tenant == kDefaultTenant) return absl::OkStatus();
  return ResourceNotFound("tenant", "tenants/" + tenant);
}

// "{hash}/{size}" at the end of a blob's or an upload's name.
bool ParseDigest(const std::string& hash, const std::string& size, v1::Digest* digest) {
  int64_t bytes = 0;
  if (!IsSha256Hex(hash) || size.empty() || !std::isdigit(static_cast<unsigned char>(size[0])) ||
      !absl::SimpleAtoi(size, &bytes)) {
    return false;
  }
  digest->set_hash(hash);
  digest->set_size_bytes(bytes);
  return true;
}

}  // namespace

absl::StatusOr<std::string> ParseTenant(const std::string& name, const std::string& field) {
  const std::vector<std::string> parts = Split(name);
  if (parts.size() != 2 || parts[0] != "tenants" || !IsId(parts[1])) {
    return InvalidField(field, "must be tenants/{tenant}");
  }
  PTQ_RETURN_IF_ERROR(CheckTenant(parts[1]));
  return parts[1];
}

absl::StatusOr<ResourceName> ParseResourceName(const std::string& name,
                                               const std::string& collection,
                                               const std::string& field) {
  const std::vector<std::string> parts = Split(name);
  if (parts.size() != 4 || parts[0] != "tenants" || !IsId(parts[1]) || parts[2] != collection ||
      !IsId(parts[3])) {
    return InvalidField(field, "must be tenants/{tenant}/" + collection + "/{id}");
  }
  PTQ_RETURN_IF_ERROR(CheckTenant(parts[1]));
  return ResourceName{parts[1], parts[3]};
}

std::string MakeResourceName(const std::string& tenant, const std::string& collection,
                             const std::string& id) {
  return "tenants/" + tenant + "/" + collection + "/" + id;
}

absl::StatusOr<BlobName> ParseBlobName(const std::string& name) {
  const std::vector<std::string> parts = Split(name);
  BlobName result;
  if (parts.size() != 5 || parts[0] != "tenants" || !IsId(parts[1]) || parts[2] != "blobs" ||
      !ParseDigest(parts[3], parts[4], &result.digest)) {
    return InvalidField("resource_name", "must be tenants/{tenant}/blobs/{sha256}/{size}");
  }
  PTQ_RETURN_IF_ERROR(CheckTenant(parts[1]));
  result.tenant = parts[1];
  return result;
}

absl::StatusOr<UploadName> ParseUploadName(const std::string& name) {
  const std::vector<std::string> parts = Split(name);
  UploadName result;
  if (parts.size() != 7 || parts[0] != "tenants" || !IsId(parts[1]) || parts[2] != "uploads" ||
      !IsUuid(parts[3]) || parts[4] != "blobs" ||
      !ParseDigest(parts[5], parts[6], &result.digest)) {
    return InvalidField("resource_name",
                        "must be tenants/{tenant}/uploads/{uuid}/blobs/{sha256}/{size}");
  }
  PTQ_RETURN_IF_ERROR(CheckTenant(parts[1]));
  result.tenant = parts[1];
  result.uuid = parts[3];
  return result;
}

bool IsUuid(const std::string& text) {
  if (text.size() != 36) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    if (dash ? text[i] != '-' : !std::isxdigit(static_cast<unsigned char>(text[i]))) return false;
  }
  return true;
}

}  // namespace ptq
