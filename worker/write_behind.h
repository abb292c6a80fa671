// Writes that go on behind the work whose results they are.
#ifndef PTQ_WORKER_WRITE_BEHIND_H_
#define PTQ_WORKER_WRITE_BEHIND_H_

#include <functional>
#include <future>

#include "absl/status/status.h"

namespace ptq {

// Runs one write at a time on a thread of its own, in the order in which they were started. After
// an error nothing is started any more, and every call returns it. Not thread-safe.
class WriteBehind {
 public:
  WriteBehind() = default;
  ~WriteBehind();  // waits for the write in flight, whose error nobody hears of then
  WriteBehind(const WriteBehind&) = delete;
  WriteBehind& operator=(const WriteBehind&) = delete;

  // Waits for the write in flight and starts `write`, which must make no CUDA call (the caller may
  // be capturing a graph). What it throws becomes a status. What it holds is released when it is
  // done.
  absl::Status Start(std::function<absl::Status()> write);
  // An error of a write that is over. Does not wait.
  absl::Status Check();
  // Waits for the write in flight.
  absl::Status Wait();

 private:
  absl::Status status_;
  std::future<absl::Status> in_flight_;
};

}  // namespace ptq

#endif  // PTQ_WORKER_WRITE_BEHIND_H_
