#include "worker/event_writer.h"

#include <errno.h>
#include <unistd.h>

#include <utility>

#include "common/logging.h"

namespace ptq {
namespace {

constexpr std::chrono::milliseconds kPhaseInterval(250);

bool WriteAll(int fd, const std::string& data) {
  size_t done = 0;
  while (done < data.size()) {
    const ssize_t count = ::write(fd, data.data() + done, data.size() - done);
    if (count < 0) {
      if (errno == EINTR) continue;
      return false;
    }
    done += static_cast<size_t>(count);
  }
  return true;
}

}  // namespace

EventWriter::EventWriter(int fd, std::function<void()> on_broken)
    : fd_(fd), on_broken_(std::move(on_broken)) {}

void EventWriter::Write(JobEvent event) {
  std::lock_guard<std::mutex> lock(mutex_);
  WriteLocked(std::move(event));
}

void EventWriter::TryWrite(JobEvent event) {
  std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (lock.owns_lock()) WriteLocked(std::move(event));
}

void EventWriter::WriteLocked(JobEvent event) {
  if (broken_ || ended_) return;
  ended_ = event.type == JobEvent::Type::kSucceeded || event.type == JobEvent::Type::kFailed ||
           event.type == JobEvent::Type::kCancelled;
  event.sequence = ++sequence_;
  event.time = absl::Now();
  if (WriteAll(fd_, DumpJson(JobEventToJson(event)) + "\n")) return;
  broken_ = true;
  PTQ_LOG(Warning) << "nobody reads the events any more: stopping";
  if (on_broken_) on_broken_();
}

void EventWriter::Phase(const std::string& phase, double fraction) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto now = std::chrono::steady_clock::now();
  if (phase == last_phase_ && fraction < 1 && now - last_phase_time_ < kPhaseInterval) return;
  last_phase_ = phase;
  last_phase_time_ = now;
  JobEvent event;
  event.type = JobEvent::Type::kPhase;
  event.phase = phase;
  event.phase_fraction = fraction;
  WriteLocked(std::move(event));
}

void EventWriter::Log(const std::string& severity, const std::string& message) {
  LogLine(severity == "warning" ? LogSeverity::kWarning : LogSeverity::kInfo, message);
  JobEvent event;
  event.type = JobEvent::Type::kLog;
  event.severity = severity;
  event.message = message;
  Write(std::move(event));
}

}  // namespace ptq
