// SIGTERM and SIGINT: stop soon, and leave a folder from which the job continues.
#ifndef PTQ_WORKER_STOP_SIGNALS_H_
#define PTQ_WORKER_STOP_SIGNALS_H_

#include <chrono>
#include <functional>

#include "common/cancellation.h"

namespace ptq {

inline constexpr int kStoppedExitStatus = 143;  // what a shell reports for SIGTERM

// Call once, before any other thread exists: blocks both signals in this and all later threads and
// starts one that waits for them. On the first signal it cancels `token`; if the process still
// lives after `grace`, it runs `last_words` and ends it with kStoppedExitStatus. Ending it anywhere
// is safe: every file gets its name only when it is complete and on the disk. `token` must live as
// long as the process.
void StopOnSignals(CancellationToken* token, std::chrono::milliseconds grace,
                   std::function<void()> last_words);

}  // namespace ptq

#endif  // PTQ_WORKER_STOP_SIGNALS_H_
