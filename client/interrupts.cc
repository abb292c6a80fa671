#include "client/interrupts.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <utility>

#include "client/exit_status.h"

namespace ptq {

InterruptListener::InterruptListener() {
  struct sigaction action;
  if (::sigaction(SIGINT, nullptr, &action) == 0 && action.sa_handler == SIG_IGN) return;
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  thread_ = std::thread([this] { Listen(); });
}

InterruptListener::~InterruptListener() {
  if (!thread_.joinable()) return;
  stopping_ = true;
  ::pthread_kill(thread_.native_handle(), SIGINT);
  thread_.join();
}

void InterruptListener::Listen() {
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGINT);
  int signal = 0;
  while (::sigwait(&signals, &signal) == 0 && !stopping_) Interrupt();
}

void InterruptListener::Interrupt() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!on_interrupt_) ::_exit(static_cast<int>(ExitStatus::kInterrupted));
  ++count_;
  on_interrupt_();
  changed_.notify_all();
}

bool InterruptListener::WaitForCount(int count, absl::Duration limit) {
  std::unique_lock<std::mutex> lock(mutex_);
  return changed_.wait_for(lock, absl::ToChronoNanoseconds(limit),
                           [this, count] { return count_ >= count; });
}

InterruptListener::Handler::Handler(InterruptListener& listener, std::function<void()> on_interrupt)
    : listener_(listener) {
  std::lock_guard<std::mutex> lock(listener_.mutex_);
  listener_.on_interrupt_ = std::move(on_interrupt);
}

InterruptListener::Handler::~Handler() {
  std::lock_guard<std::mutex> lock(listener_.mutex_);
  listener_.on_interrupt_ = nullptr;
}

}  // namespace ptq
