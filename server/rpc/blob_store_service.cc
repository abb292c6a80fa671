#include "server/rpc/blob_store_service.h"

#include <vector>

#include "absl/strings/str_format.h"
#include "common/sha256.h"
#include "common/status_macros.h"
#include "server/errors/status_details.h"
#include "server/jobs/resource_names.h"
#include "server/rpc/grpc_status.h"

namespace ptq {
namespace {

absl::Status FindMissing(BlobStore& blobs, const v1::FindMissingBlobsRequest& request,
                         v1::FindMissingBlobsResponse& response) {
  PTQ_ASSIGN_OR_RETURN(const std::string tenant, ParseTenant(request.parent(), "parent"));
  std::vector<v1::Digest> digests;
  for (int i = 0; i < request.digests_size(); ++i) {
    const v1::Digest& digest = request.digests(i);
    if (!IsSha256Hex(digest.hash()) || digest.size_bytes() < 0) {
      return InvalidField(absl::StrFormat("digests[%d]", i),
                          "must be 64 lowercase hexadecimal digits and a size");
    }
    digests.push_back(digest);
  }
  PTQ_ASSIGN_OR_RETURN(const auto missing, blobs.MissingBlobs(tenant, digests));
  for (const v1::Digest& digest : missing) *response.add_missing() = digest;
  return absl::OkStatus();
}

}  // namespace

grpc::Status BlobStoreServiceImpl::FindMissingBlobs(grpc::ServerContext*,
                                                    const v1::FindMissingBlobsRequest* request,
                                                    v1::FindMissingBlobsResponse* response) {
  return ToGrpcStatus(FindMissing(blobs_, *request, *response));
}

}  // namespace ptq
