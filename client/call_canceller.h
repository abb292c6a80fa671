// Stops calls that are in progress when the user presses Ctrl-C.
#ifndef PTQ_CLIENT_CALL_CANCELLER_H_
#define PTQ_CLIENT_CALL_CANCELLER_H_

#include <grpcpp/client_context.h>

#include <condition_variable>
#include <mutex>
#include <set>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace ptq {

// Thread-safe. Cancel() ends the calls in progress and all later ones with CANCELLED.
class CallCanceller {
 public:
  void Cancel();
  // Calls may be made again: for what is left to do after an interruption.
  void Reset();
  bool IsCancelled() const;
  // kCancelled once Cancel was called.
  absl::Status Check() const;
  // False if Cancel was called before the time was over.
  bool SleepFor(absl::Duration duration);

  // Ties a call to a canceller while the call is in progress.
  class Scope {
   public:
    Scope(CallCanceller& canceller, grpc::ClientContext& context);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    CallCanceller& canceller_;
    grpc::ClientContext& context_;
  };

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool cancelled_ = false;
  std::set<grpc::ClientContext*> contexts_;
};

}  // namespace ptq

#endif  // PTQ_CLIENT_CALL_CANCELLER_H_
