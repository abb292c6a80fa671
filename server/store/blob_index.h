// Which tenant has sent which blob, and what still needs it. The bytes are BlobStore's.
#ifndef PTQ_SERVER_STORE_BLOB_INDEX_H_
#define PTQ_SERVER_STORE_BLOB_INDEX_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ptq/v1/blob_store.pb.h"

namespace ptq {

// Thread-safe; every change is durable when the call returns.
class BlobIndex {
 public:
  virtual ~BlobIndex() = default;

  virtual absl::Status AddBlob(const std::string& tenant, const v1::Digest& digest,
                               absl::Time now) = 0;
  // Those of `digests` that the tenant has not; the others count as used at `now`.
  virtual absl::StatusOr<std::vector<v1::Digest>> MissingBlobs(
      const std::string& tenant, const std::vector<v1::Digest>& digests, absl::Time now) = 0;
  // The stored bytes are damaged: the tenant has to send them again.
  virtual absl::Status ForgetBlob(const std::string& hash) = 0;
  // Forgets those of `hashes` that no model, dataset or result of the tenant names. Returns the
  // ones that now belong to no tenant, whose bytes can go.
  virtual absl::StatusOr<std::vector<std::string>> RemoveUnreferencedBlobs(
      const std::string& tenant, const std::vector<std::string>& hashes) = 0;
  // Blobs that nothing names and that were last used before `before`, as (tenant, hash).
  virtual absl::StatusOr<std::vector<std::pair<std::string, std::string>>> StaleBlobs(
      absl::Time before) = 0;
};

}  // namespace ptq

#endif  // PTQ_SERVER_STORE_BLOB_INDEX_H_
