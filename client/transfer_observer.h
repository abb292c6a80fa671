// Who wants to know how far an upload or a download is.
#ifndef PTQ_CLIENT_TRANSFER_OBSERVER_H_
#define PTQ_CLIENT_TRANSFER_OBSERVER_H_

#include <cstdint>
#include <string>

namespace ptq {

// Called from the thread that transfers.
class TransferObserver {
 public:
  virtual ~TransferObserver() = default;
  // A stage of `total_bytes` begins: "Checking", "Uploading", "Downloading" with what it is about,
  // as in "Uploading wikilm-llama-6m (3 files)". Nobody needs to read of a `routine` one that was
  // quick.
  virtual void OnBegin(const std::string& title, int64_t total_bytes, bool routine) = 0;
  // `bytes` more of the stage are done. Negative when work has to be repeated.
  virtual void OnBytes(int64_t bytes) = 0;
  virtual void OnEnd() = 0;
  // A sentence beside the progress: what was skipped, what is retried.
  virtual void OnNote(const std::string& note) = 0;
};

}  // namespace ptq

#endif  // PTQ_CLIENT_TRANSFER_OBSERVER_H_
