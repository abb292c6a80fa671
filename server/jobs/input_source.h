// A model's or dataset's files, resolved to where their bytes lie, and folders of links to them.
#ifndef PTQ_SERVER_JOBS_INPUT_SOURCE_H_
#define PTQ_SERVER_JOBS_INPUT_SOURCE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/cancellation.h"
#include "ptq/v1/resources.pb.h"
#include "server/blobs/blob_store.h"
#include "server/jobs/model_roots.h"
#include "server/store/job_store.h"

namespace ptq {

struct SourceFile {
  std::string path;    // inside the model
  std::string target;  // a blob, or a file below a model root with all links followed
  v1::Digest digest;   // of a manifest's file; for a server path only the size is set
};

struct ResolvedSource {
  std::vector<SourceFile> files;  // sorted by path
  // SHA-256 and size of the sorted listing. A manifest's lines are digest, size and path of its
  // files. Files on the server are not read to name them (they may be terabytes): their lines are
  // real path, size and modification time instead, so that a file replaced or rewritten in place is
  // another input, and the worker computes their digests when it reads them anyway.
  v1::Digest root_digest;
  int64_t size_bytes = 0;
};

// Thread-safe. Borrows must outlive it.
class InputSources {
 public:
  InputSources(BlobStore& blobs, ModelRoots roots) : blobs_(blobs), roots_(std::move(roots)) {}

  // kInvalidArgument with the field below "source": no source, unsafe or repeated paths, bad
  // digests, a dataset of several files; kFailedPrecondition: missing blobs; kPermissionDenied: a
  // path outside of the roots; kUnimplemented: a URI.
  absl::StatusOr<ResolvedSource> Resolve(const std::string& tenant, InputKind kind,
                                         const v1::Source& source) const;
  // Makes `folder` with a link for each file: hard links to blobs, which so outlive their removal
  // from the store, and symbolic links to server paths.
  absl::Status LinkInto(const ResolvedSource& source, const std::string& folder) const;
  // Reads all blobs again. kDataLoss if one is damaged.
  absl::Status Verify(const ResolvedSource& source, const CancellationToken& cancel) const;

  const ModelRoots& roots() const { return roots_; }

 private:
  absl::StatusOr<ResolvedSource> ResolveManifest(const std::string& tenant,
                                                 const v1::Source::Manifest& manifest) const;
  absl::StatusOr<ResolvedSource> ResolveServerPath(InputKind kind, const std::string& path) const;

  BlobStore& blobs_;
  const ModelRoots roots_;
};

}  // namespace ptq

#endif  // PTQ_SERVER_JOBS_INPUT_SOURCE_H_
