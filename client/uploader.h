// Files to the server's blob store: hashed, deduplicated, and continued where an earlier run
// stopped.
#ifndef PTQ_CLIENT_UPLOADER_H_
#define PTQ_CLIENT_UPLOADER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/quantization_client.h"
#include "client/transfer_observer.h"

namespace ptq {

struct LocalFile {
  std::string name;  // relative to the model's folder, or the dataset's file name
  std::string path;  // where it lies; links are followed
};

// Thread-compatible; `client` and `observer` must outlive it.
class Uploader {
 public:
  struct Options {
    std::string parent;     // "tenants/{tenant}"
    std::string client_id;  // stable for one user on one machine; part of the uploads' names
    int64_t chunk_bytes = 1 << 20;
  };
  Uploader(QuantizationClient& client, TransferObserver& observer, Options options);

  // Hashes `files`, sends those that the server lacks, and returns the manifest's entries in the
  // order given. `what` names the whole for people. A broken connection is resumed at the server's
  // offset until 60 s pass without a byte, then kUnavailable. A file that cannot be read or that
  // changes meanwhile is an error with exit status kError.
  absl::StatusOr<std::vector<v1::FileNode>> Upload(const std::vector<LocalFile>& files,
                                                   const std::string& what);

 private:
  struct Pending {
    LocalFile file;
    v1::Digest digest;
  };

  absl::StatusOr<v1::Digest> HashFile(const LocalFile& file);
  absl::Status Send(const Pending& pending);
  // One stream from `offset` to the end; `*reported` counts the bytes that the observer was told
  // of.
  absl::Status SendFrom(const Pending& pending, const std::string& name, int64_t offset,
                        int64_t* reported);
  // Bytes that the server already has of this upload.
  absl::StatusOr<int64_t> CommittedBytes(const std::string& name, int64_t size);

  QuantizationClient& client_;
  TransferObserver& observer_;
  Options options_;
  std::string buffer_;
};

// Who uploads: this user on this machine.
std::string LocalClientId();

}  // namespace ptq

#endif  // PTQ_CLIENT_UPLOADER_H_
