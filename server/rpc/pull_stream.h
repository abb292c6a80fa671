// Server streams that mostly wait: no thread each, woken when their job changes.
#ifndef PTQ_SERVER_RPC_PULL_STREAM_H_
#define PTQ_SERVER_RPC_PULL_STREAM_H_

#include <grpcpp/support/server_callback.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/errors/status_details.h"
#include "server/jobs/job_event_hub.h"
#include "server/rpc/grpc_status.h"

namespace ptq {

enum class Pulled { kMessage, kNothingYet, kEnd };

// Sends what `source` gives until it ends. `source` is called by one thread at a time, and only
// when the message before has left: a slow reader holds one message, not a queue.
template <typename Message>
class PullStream final : public grpc::ServerWriteReactor<Message>, public JobListener {
 public:
  using Source = std::function<absl::StatusOr<Pulled>(Message& message)>;

  // The reactor for gRPC, which owns it until OnDone.
  static grpc::ServerWriteReactor<Message>* Start(JobEventHub& hub, const std::string& job,
                                                  Source source) {
    auto stream = std::shared_ptr<PullStream>(new PullStream(std::move(source)));
    stream->self_ = stream;
    if (hub.Add(job, stream)) {
      stream->Wake();
    } else {
      stream->ServerStops();
    }
    return stream.get();
  }

  // A stream that only says why there is none.
  static grpc::ServerWriteReactor<Message>* Refuse(const absl::Status& status) {
    auto stream = std::shared_ptr<PullStream>(
        new PullStream([status](Message&) -> absl::StatusOr<Pulled> { return status; }));
    stream->self_ = stream;
    stream->Wake();
    return stream.get();
  }

  void Wake() override {
    {
      absl::MutexLock lock(&mutex_);
      if (busy_ || finished_) {
        woken_ = true;
        return;
      }
      busy_ = true;
    }
    Advance();
  }

  void ServerStops() override {
    {
      absl::MutexLock lock(&mutex_);
      stop_ = WithRetryDelay(absl::UnavailableError("the server is shutting down; watch again "
                                                    "when it is back"),
                             absl::Seconds(2));
    }
    Wake();
  }

  void OnCancel() override {
    {
      absl::MutexLock lock(&mutex_);
      stop_ = absl::CancelledError("the client went away");
    }
    Wake();
  }

  void OnWriteDone(bool ok) override {
    if (ok) {
      Advance();
    } else {
      End(absl::CancelledError("the client went away"));
    }
  }

  void OnDone() override {
    // The hub may hold it a moment longer.
    const std::shared_ptr<PullStream> last = std::move(self_);
  }

 private:
  explicit PullStream(Source source) : source_(std::move(source)) {}

  // Runs while busy_ is ours: until a write is under way, nothing is left to do, or the end.
  void Advance() {
    while (true) {
      absl::Status stop;
      {
        absl::MutexLock lock(&mutex_);
        woken_ = false;
        stop = stop_;
      }
      if (!stop.ok()) return End(stop);
      const absl::StatusOr<Pulled> pulled = source_(message_);
      if (!pulled.ok()) return End(pulled.status());
      if (*pulled == Pulled::kEnd) return End(absl::OkStatus());
      if (*pulled == Pulled::kMessage) return this->StartWrite(&message_);
      absl::MutexLock lock(&mutex_);
      if (woken_) continue;
      busy_ = false;
      return;
    }
  }

  void End(const absl::Status& status) {
    {
      absl::MutexLock lock(&mutex_);
      if (finished_) return;
      finished_ = true;
    }
    this->Finish(ToGrpcStatus(status));
  }

  const Source source_;
  Message message_;
  std::shared_ptr<PullStream> self_;
  absl::Mutex mutex_;
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;  // a thread is in Advance, or a write is under way
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status stop_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ptq

#endif  // PTQ_SERVER_RPC_PULL_STREAM_H_
