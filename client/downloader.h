// Blobs to local files: continued where an earlier run stopped, and checked against their digests.
#ifndef PTQ_CLIENT_DOWNLOADER_H_
#define PTQ_CLIENT_DOWNLOADER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/quantization_client.h"
#include "client/transfer_observer.h"

namespace ptq {

// Thread-compatible; `client` and `observer` must outlive it. Trouble with the local disk and
// digests that do not fit have exit status kError; a broken connection is resumed until 60 s pass
// without a byte, then kUnavailable.
class Downloader {
 public:
  Downloader(QuantizationClient& client, TransferObserver& observer)
      : client_(client), observer_(observer) {}

  // All files of a job's result into `folder` (see output_folder.h). Files get their names only
  // when they are complete and durable; config.json and the index come last, so that no loader
  // takes a part for the whole.
  absl::Status DownloadJob(const std::string& job, const std::string& folder);

  // One blob as the file `path`; a file of that name is replaced when the blob is complete.
  absl::Status DownloadBlob(const std::string& parent, const v1::Digest& digest,
                            const std::string& path);

 private:
  absl::Status Fetch(const std::string& parent, const v1::Digest& digest, const std::string& path);

  QuantizationClient& client_;
  TransferObserver& observer_;
};

}  // namespace ptq

#endif  // PTQ_CLIENT_DOWNLOADER_H_
