#include "client/call_canceller.h"

namespace ptq {

void CallCanceller::Cancel() {
  std::lock_guard<std::mutex> lock(mutex_);
  cancelled_ = true;
  for (grpc::ClientContext* context : contexts_) context->TryCancel();
  changed_.notify_all();
}

void CallCanceller::Reset() {
  std::lock_guard<std::mutex> lock(mutex_);
  cancelled_ = false;
}

bool CallCanceller::IsCancelled() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return cancelled_;
}

absl::Status CallCanceller::Check() const {
  return IsCancelled() ? absl::CancelledError("interrupted") : absl::OkStatus();
}

bool CallCanceller::SleepFor(absl::Duration duration) {
  std::unique_lock<std::mutex> lock(mutex_);
  return !changed_.wait_for(lock, absl::ToChronoNanoseconds(duration),
                            [this] { return cancelled_; });
}

CallCanceller::Scope::Scope(CallCanceller& canceller, grpc::ClientContext& context)
    : canceller_(canceller), context_(context) {
  std::lock_guard<std::mutex> lock(canceller_.mutex_);
  canceller_.contexts_.insert(&context_);
  if (canceller_.cancelled_) context_.TryCancel();
}

CallCanceller::Scope::~Scope() {
  std::lock_guard<std::mutex> lock(canceller_.mutex_);
  canceller_.contexts_.erase(&context_);
}

}  // namespace ptq
