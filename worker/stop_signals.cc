#include "worker/stop_signals.h"

#include <signal.h>
#include <unistd.h>

#include <thread>
#include <utility>

#include "common/logging.h"

namespace ptq {

void StopOnSignals(CancellationToken* token, std::chrono::milliseconds grace,
                   std::function<void()> last_words) {
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGTERM);
  ::sigaddset(&signals, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  // A closed pipe and a file over the size limit become errors of write(), not deaths.
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);
  std::thread([signals, token, grace, last_words = std::move(last_words)] {
    int signal = 0;
    while (::sigwait(&signals, &signal) != 0) {
    }
    PTQ_LOG(Info) << "stopping: signal " << signal;
    token->Cancel();
    std::this_thread::sleep_for(grace);
    // Some long call does not look at the token.
    last_words();
    ::_exit(kStoppedExitStatus);
  }).detach();
}

}  // namespace ptq
