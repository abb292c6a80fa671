// The live side of progress: draws transfers and watched jobs, in place on a terminal, line by line
// elsewhere.
#ifndef PTQ_CLIENT_PROGRESS_DISPLAY_H_
#define PTQ_CLIENT_PROGRESS_DISPLAY_H_

#include <condition_variable>
#include <mutex>
#include <ostream>
#include <string>
#include <thread>

#include "absl/time/time.h"
#include "client/console.h"
#include "client/job_watcher.h"
#include "client/progress_view.h"
#include "client/transfer_observer.h"

namespace ptq {

// A stage of a transfer as one line of at most `width` columns.
std::string RenderTransfer(const std::string& title, int64_t done_bytes, int64_t total_bytes,
                           absl::Duration elapsed, const TerminalTraits& terminal, int width);

// Thread-compatible. `out` must outlive it.
class TransferDisplay : public TransferObserver {
 public:
  TransferDisplay(std::ostream& out, const TerminalTraits& terminal)
      : out_(out), terminal_(terminal), region_(out) {}

  void OnBegin(const std::string& title, int64_t total_bytes, bool routine) override;
  void OnBytes(int64_t bytes) override;
  void OnEnd() override;
  void OnNote(const std::string& note) override;
  // Takes an unfinished stage away, so that an error can be printed.
  void OnStop() { region_.Clear(); }

 private:
  std::ostream& out_;
  TerminalTraits terminal_;
  LiveRegion region_;
  std::string title_;
  bool routine_ = false;
  int64_t done_bytes_ = 0;
  int64_t total_bytes_ = 0;
  absl::Time begin_;
  absl::Time drawn_;
};

// Thread-safe. `out` must outlive it. On a terminal a thread of its own redraws, so that the clock
// moves between events; Close ends it and takes the region away.
class JobDisplay : public JobObserver {
 public:
  JobDisplay(std::ostream& out, const TerminalTraits& terminal);
  ~JobDisplay() override;

  void OnEvent(const v1::JobEvent& event) override;
  void OnDisconnected() override;
  void OnReconnected() override;
  void Close();

 private:
  void RedrawLoop();
  void DrawLocked();
  void NoteLocked(const std::string& note);

  std::ostream& out_;
  TerminalTraits terminal_;
  std::mutex mutex_;
  std::condition_variable wake_;
  LiveRegion region_;
  ProgressView view_;
  bool seen_ = false;
  bool closed_ = false;
  std::thread thread_;
};

}  // namespace ptq

#endif  // PTQ_CLIENT_PROGRESS_DISPLAY_H_
