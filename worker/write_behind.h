// Writes that go on behind the work whose results they are.
#ifndef PTQ_WORKER_WRITE_BEHIND_H_
#define PTQ_WORKER_WRITE_BEHIND_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ptq {

// Runs up to `slots` writes at a time, and commits what was written one after the other, in the
// order in which it was started. After an error nothing later is committed, nothing is started any
// more, and every call returns the error. One thread starts and waits.
class WriteBehind {
 public:
  explicit WriteBehind(int64_t slots = 1) : slots_(slots) {}
  ~WriteBehind();  // waits for what was started, whose error nobody hears of then
  WriteBehind(const WriteBehind&) = delete;
  WriteBehind& operator=(const WriteBehind&) = delete;

  // Waits until fewer than `slots` writes are under way. Returns the slot that the next Start
  // takes, 0..slots-1: whatever an earlier write in that slot held is free.
  absl::StatusOr<int64_t> WaitForSlot();
  // Waits for a slot and starts `write` in it, then `commit`, which may wait long and should hold
  // little: it takes no slot. Neither may make a CUDA call (the caller may be capturing a graph).
  // What they throw becomes a status. What they hold is released when they are done.
  absl::Status Start(std::function<absl::Status()> write,
                     std::function<absl::Status()> commit = {});
  // An error of what is over. Does not wait.
  absl::Status Check();
  // Waits for everything that was started.
  absl::Status Wait();

 private:
  struct Item {
    std::function<absl::Status()> write;
    std::function<absl::Status()> commit;
    int64_t slot = 0;
    bool written = false;
    absl::Status status;
  };

  void WriteLoop();
  void CommitLoop();
  absl::Status StatusLocked() const;

  const int64_t slots_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<int64_t> free_slots_;
  std::optional<int64_t> reserved_slot_;  // of the next Start, not among the free ones
  std::deque<std::shared_ptr<Item>> to_write_;
  std::deque<std::shared_ptr<Item>> to_commit_;  // in order, those that are being written too
  absl::Status status_;
  bool ending_ = false;
  std::vector<std::jthread> threads_;  // made when something is started
};

}  // namespace ptq

#endif  // PTQ_WORKER_WRITE_BEHIND_H_
