// Writes job events to standard output, one JSON object a line.
#ifndef PTQ_WORKER_EVENT_WRITER_H_
#define PTQ_WORKER_EVENT_WRITER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

#include "worker/spec/job_event.h"

namespace ptq {

// Thread-safe. A line is one write call, so that a reader never sees half a line of a living
// worker.
class EventWriter {
 public:
  // Writes to `fd`, which stays the caller's. `on_broken` runs once when nobody reads the other end
  // any more: without a listener the job should stop and be resumed by whoever comes next.
  EventWriter(int fd, std::function<void()> on_broken);

  // Gives the event its sequence number and time, and writes it. Nothing is written after the event
  // that ends the job: of a run that ends while it is being stopped, the first word counts.
  void Write(JobEvent event);
  // As Write, but gives up if another thread is inside Write: for the last words of a process that
  // is about to be ended whatever it does.
  void TryWrite(JobEvent event);

  // A `phase` event, at most four a second unless the phase changes or is complete.
  void Phase(const std::string& phase, double fraction);
  // A `log` event, also on standard error. `severity` is "info" or "warning".
  void Log(const std::string& severity, const std::string& message);

 private:
  void WriteLocked(JobEvent event);

  const int fd_;
  std::function<void()> on_broken_;
  std::mutex mutex_;
  int64_t sequence_ = 0;
  bool broken_ = false;
  bool ended_ = false;
  std::string last_phase_;
  std::chrono::steady_clock::time_point last_phase_time_;
};

}  // namespace ptq

#endif  // PTQ_WORKER_EVENT_WRITER_H_
