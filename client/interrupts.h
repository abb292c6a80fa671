// Ctrl-C: once stops what a command is doing, twice is up to the command.
#ifndef PTQ_CLIENT_INTERRUPTS_H_
#define PTQ_CLIENT_INTERRUPTS_H_

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/time/time.h"

namespace ptq {

// Takes SIGINT away from the process and handles it in a thread of its own. Create one, before any
// other thread. Where SIGINT is ignored (nohup, background jobs of scripts) it stays ignored. While
// no Handler is there, SIGINT ends the process with status 130.
class InterruptListener {
 public:
  InterruptListener();
  ~InterruptListener();
  InterruptListener(const InterruptListener&) = delete;
  InterruptListener& operator=(const InterruptListener&) = delete;

  // Calls `on_interrupt` for each Ctrl-C while it lives; one at a time.
  class Handler {
   public:
    Handler(InterruptListener& listener, std::function<void()> on_interrupt);
    ~Handler();
    Handler(const Handler&) = delete;
    Handler& operator=(const Handler&) = delete;

   private:
    InterruptListener& listener_;
  };

  // Waits until Ctrl-C has been pressed `count` times in all; false if that takes longer than
  // `limit`.
  bool WaitForCount(int count, absl::Duration limit);
  // As if Ctrl-C were pressed.
  void Interrupt();

 private:
  void Listen();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> on_interrupt_;
  int count_ = 0;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace ptq

#endif  // PTQ_CLIENT_INTERRUPTS_H_
