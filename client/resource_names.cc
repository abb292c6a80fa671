#include "client/resource_names.h"

#include <array>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_split.h"
#include "common/sha256.h"

namespace ptq {
namespace {

constexpr char kJobCollection[] = "quantizationJobs";

bool IsNamePart(const std::string& part) {
  if (part.empty() || part.size() > 128) return false;
  for (char c : part) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '-' || c == '_' || c == '.';
    if (!plain) return false;
  }
  return true;
}

// The first 32 of `hex` as a UUID with the given version digit and RFC 4122's variant.
std::string FormatUuid(std::string hex, char version) {
  hex[12] = version;
  hex[16] = "89ab"[(hex[16] <= '9' ? hex[16] - '0' : hex[16] - 'a' + 10) & 3];
  return hex.substr(0, 8) + "-" + hex.substr(8, 4) + "-" + hex.substr(12, 4) + "-" +
         hex.substr(16, 4) + "-" + hex.substr(20, 12);
}

}  // namespace

absl::StatusOr<std::string> ResolveJobName(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, '/');
  if (parts.size() == 1 && IsNamePart(text)) {
    return std::string(kDefaultTenant) + "/" + kJobCollection + "/" + text;
  }
  if (parts.size() == 4 && parts[0] == "tenants" && IsNamePart(parts[1]) &&
      parts[2] == kJobCollection && IsNamePart(parts[3])) {
    return text;
  }
  return absl::InvalidArgumentError(
      "'" + text +
      "' is not a job: give the full name (tenants/.../quantizationJobs/...) or its last part, as "
      "`ptq list` shows them");
}

bool IsModelName(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, '/');
  return parts.size() == 4 && parts[0] == "tenants" && IsNamePart(parts[1]) &&
         parts[2] == "models" && IsNamePart(parts[3]);
}

std::string ShortName(const std::string& name) { return name.substr(name.rfind('/') + 1); }

std::string ParentOf(const std::string& job_name) {
  return job_name.substr(0, job_name.find(std::string("/") + kJobCollection + "/"));
}

std::string BlobResourceName(const std::string& parent, const std::string& sha256,
                             int64_t size_bytes) {
  return parent + "/blobs/" + sha256 + "/" + std::to_string(size_bytes);
}

std::string UploadResourceName(const std::string& parent, const std::string& uuid,
                               const std::string& sha256, int64_t size_bytes) {
  return parent + "/uploads/" + uuid + "/blobs/" + sha256 + "/" + std::to_string(size_bytes);
}

std::string StableUuid(const std::string& text) { return FormatUuid(Sha256Hex(text), '5'); }

std::string RandomUuid() {
  std::random_device device;
  std::array<unsigned int, 8> words;
  for (unsigned int& word : words) word = device();
  return FormatUuid(Sha256Hex({reinterpret_cast<const char*>(words.data()), sizeof(words)}), '4');
}

}  // namespace ptq
