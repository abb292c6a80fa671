// Content-addressed files and the uploads that become such files.
//
//   DIR/blobs/ab/<sha256>        a blob, read-only, complete and durable
//   DIR/uploads/<name>.part      an unfinished upload; <name>.part.committed: its durable size
#ifndef PTQ_SERVER_BLOBS_BLOB_STORE_H_
#define PTQ_SERVER_BLOBS_BLOB_STORE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/cancellation.h"
#include "common/file.h"
#include "ptq/v1/blob_store.pb.h"
#include "server/blobs/upload_state.h"
#include "server/store/blob_index.h"

namespace ptq {

// "tenants/{tenant}/uploads/{uuid}/blobs/{hash}/{size}".
struct UploadName {
  std::string tenant;
  std::string uuid;
  v1::Digest digest;
};

struct UploadProgress {
  int64_t committed_size = 0;
  bool complete = false;
};

class BlobUpload;

// Thread-safe. `index` must outlive it.
class BlobStore {
 public:
  static absl::StatusOr<std::unique_ptr<BlobStore>> Open(const std::string& data_dir,
                                                         BlobIndex& index);

  // Those of `digests` that the tenant has to send.
  absl::StatusOr<std::vector<v1::Digest>> MissingBlobs(const std::string& tenant,
                                                       const std::vector<v1::Digest>& digests);
  // kNotFound if the tenant has no such blob, kDataLoss if its file is gone or has another size.
  absl::StatusOr<ReadableFile> OpenBlob(const std::string& tenant, const v1::Digest& digest);
  // Reads everything and compares digests. kDataLoss: the bytes are damaged, and the blob now
  // counts as missing, so that sending it again heals it.
  absl::Status VerifyBlob(const v1::Digest& digest, const CancellationToken& cancel);
  // What VerifyBlob and full reads do on damage.
  absl::Status ReportDamage(const v1::Digest& digest);
  // Where the bytes lie; for hard links.
  std::string PathOf(const std::string& hash) const;

  // Starts or continues an upload. Nothing if the tenant has the blob already. kAborted if another
  // stream is writing under this name.
  absl::StatusOr<std::unique_ptr<BlobUpload>> BeginUpload(const UploadName& name);
  // Makes what has arrived durable and says how much that is: 0 of an upload that never began.
  absl::StatusOr<UploadProgress> QueryUpload(const UploadName& name);
  // Removes uploads that nobody has written to for `age`.
  absl::Status CollectAbandonedUploads(absl::Time now, absl::Duration age);

  // A finished file that is to become a blob under a digest computed from its bytes.
  struct NewBlob {
    std::string path;
    v1::Digest digest;
  };
  // Links the files into the store, then runs `commit`, which writes the rows that name them; no
  // blob is removed in between. Files must lie on the store's file system.
  absl::Status Publish(const std::vector<NewBlob>& files, absl::FunctionRef<absl::Status()> commit);
  // Removes those of `hashes` that nothing needs any more.
  absl::Status Collect(const std::string& tenant, const std::vector<std::string>& hashes);
  // Removes blobs that were sent but not used for `age`.
  absl::Status CollectStale(absl::Time now, absl::Duration age);

 private:
  friend class BlobUpload;

  BlobStore(std::string data_dir, BlobIndex& index)
      : data_dir_(std::move(data_dir)), index_(index) {}
  std::string PartPath(const UploadName& name) const;
  absl::Status MoveIntoStore(const std::string& path, const std::string& hash, bool keep_source)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(publish_mutex_);
  absl::Status CollectLocked(const std::string& tenant, const std::vector<std::string>& hashes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(publish_mutex_);
  void EndUpload(const std::string& part_path);

  const std::string data_dir_;
  BlobIndex& index_;
  // Held from a blob's file to its row and from its row's removal to its file's: so a row never
  // names a file that is not there.
  absl::Mutex publish_mutex_;
  absl::Mutex uploads_mutex_;
  // Uploads with a writer, by part path.
  std::map<std::string, std::shared_ptr<UploadState>> active_ ABSL_GUARDED_BY(uploads_mutex_);
};

// The one writer of an upload. Thread-compatible. When it goes out of scope unfinished, what
// arrived is made durable and the name is free for the next stream.
class BlobUpload {
 public:
  BlobUpload(BlobStore& store, UploadName name, std::string part_path,
             std::shared_ptr<UploadState> state);
  ~BlobUpload();
  BlobUpload(const BlobUpload&) = delete;
  BlobUpload& operator=(const BlobUpload&) = delete;

  // Takes bytes that begin at `offset`. Those that are there already are skipped; kOutOfRange if
  // bytes before `offset` are missing; kInvalidArgument if there are more than the name's size: the
  // upload is then discarded.
  absl::Status Append(int64_t offset, std::string_view data);
  // The blob is complete: checks size and digest and makes it the tenant's. kInvalidArgument if
  // either is wrong: the upload is then discarded.
  absl::Status Finish();
  absl::Status Sync() { return state_->Sync(); }
  int64_t committed_size() const { return state_->committed(); }
  int64_t written() const { return state_->written(); }

 private:
  void Discard();

  BlobStore& store_;
  const UploadName name_;
  const std::string part_path_;
  const std::shared_ptr<UploadState> state_;
  bool ended_ = false;
};

}  // namespace ptq

#endif  // PTQ_SERVER_BLOBS_BLOB_STORE_H_
