// The names of the API's resources: "tenants/{tenant}/{collection}/{id}".
#ifndef PTQ_SERVER_JOBS_RESOURCE_NAMES_H_
#define PTQ_SERVER_JOBS_RESOURCE_NAMES_H_

#include <string>

#include "absl/status/statusor.h"
#include "ptq/v1/blob_store.pb.h"
#include "server/blobs/blob_store.h"

namespace ptq {

struct ResourceName {
  std::string tenant;
  std::string id;
};

struct BlobName {
  std::string tenant;
  v1::Digest digest;
};

// "tenants/{tenant}". kInvalidArgument about `field`; kNotFound for a tenant that does not exist:
// there is one, "default", until authentication knows others.
absl::StatusOr<std::string> ParseTenant(const std::string& name, const std::string& field);

// "tenants/{tenant}/{collection}/{id}".
absl::StatusOr<ResourceName> ParseResourceName(const std::string& name,
                                               const std::string& collection,
                                               const std::string& field);
std::string MakeResourceName(const std::string& tenant, const std::string& collection,
                             const std::string& id);

// "tenants/{tenant}/blobs/{hash}/{size}".
absl::StatusOr<BlobName> ParseBlobName(const std::string& name);
// "tenants/{tenant}/uploads/{uuid}/blobs/{hash}/{size}".
absl::StatusOr<UploadName> ParseUploadName(const std::string& name);

// 8-4-4-4-12 hexadecimal digits.
bool IsUuid(const std::string& text);

}  // namespace ptq

#endif  // PTQ_SERVER_JOBS_RESOURCE_NAMES_H_
