// Workers whose every step a test decides.
#ifndef PTQ_TESTS_SERVER_FAKE_LAUNCHER_H_
#define PTQ_TESTS_SERVER_FAKE_LAUNCHER_H_

#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/file.h"
#include "common/json.h"
#include "server/jobs/worker_launcher.h"
#include "worker/spec/job_event.h"

namespace ptq::testing {

// Both ends of one fake worker: the server's through WorkerProcess, the test's below.
class FakeWorker {
 public:
  explicit FakeWorker(WorkerCommand command) : command_(std::move(command)) {}

  const WorkerCommand& command() const { return command_; }

  void SayLine(const std::string& line) {
    absl::MutexLock lock(&mutex_);
    lines_.push_back(line);
  }
  void Say(JobEvent event) {
    event.time = absl::Now();
    SayLine(DumpJson(JobEventToJson(event)));
  }
  void SayStarted(int64_t blocks, int64_t resumed = 0) {
    JobEvent event;
    event.type = JobEvent::Type::kStarted;
    event.blocks_total = blocks;
    event.blocks_resumed = resumed;
    event.device = "cpu";
    Say(event);
  }
  void SayBlockDone(int64_t block) {
    JobEvent event;
    event.type = JobEvent::Type::kBlockDone;
    event.block = block;
    event.block_name = "model.layers." + std::to_string(block);
    event.seconds = 2;
    Say(event);
  }
  void Exit(int code) { End({code, 0}); }
  void DieOf(int signal) { End({0, signal}); }
  // Writes a result folder, says so, and ends well.
  void Succeed(const std::string& weights = "weights") {
    WriteFileAtomically(JoinPath(command_.output_dir, "model.safetensors"), weights).IgnoreError();
    WriteFileAtomically(JoinPath(command_.output_dir, "report.json"), "{\"blocks\": []}")
        .IgnoreError();
    JobEvent event;
    event.type = JobEvent::Type::kSucceeded;
    event.result_digest = std::string(64, 'd');
    Say(event);
    Exit(0);
  }
  void Fail(absl::StatusCode code, const std::string& message) {
    JobEvent event;
    event.type = JobEvent::Type::kFailed;
    event.code = code;
    event.message = message;
    Say(event);
    Exit(1);
  }
  bool AwaitStopRequest(absl::Duration timeout = absl::Seconds(20)) {
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(absl::Condition(&stop_requested_), timeout);
  }
  // True: SIGTERM is heard but not obeyed.
  void set_stubborn() {
    absl::MutexLock lock(&mutex_);
    stubborn_ = true;
  }
  bool killed() {
    absl::MutexLock lock(&mutex_);
    return killed_;
  }

 private:
  friend class FakeProcess;

  void End(WorkerExit exit) {
    absl::MutexLock lock(&mutex_);
    if (ended_) return;
    exit_ = exit;
    ended_ = true;
  }

  const WorkerCommand command_;
  absl::Mutex mutex_;
  std::deque<std::string> lines_;
  bool ended_ = false;
  bool stop_requested_ = false;
  bool stubborn_ = false;
  bool killed_ = false;
  WorkerExit exit_;
};

class FakeProcess final : public WorkerProcess {
 public:
  explicit FakeProcess(std::shared_ptr<FakeWorker> worker) : worker_(std::move(worker)) {}
  std::string handle() const override { return "fake:1"; }
  std::string description() const override { return "fake"; }
  absl::StatusOr<std::optional<std::string>> ReadLine(absl::Time deadline) override {
    FakeWorker& w = *worker_;
    absl::MutexLock lock(&w.mutex_);
    const auto ready = [&w] { return !w.lines_.empty() || w.ended_; };
    w.mutex_.AwaitWithDeadline(absl::Condition(&ready), deadline);
    if (!w.lines_.empty()) {
      std::string line = std::move(w.lines_.front());
      w.lines_.pop_front();
      return line;
    }
    if (w.ended_) return absl::OutOfRangeError("ended");
    return std::nullopt;
  }
  void RequestStop() override {
    FakeWorker& w = *worker_;
    {
      absl::MutexLock lock(&w.mutex_);
      w.stop_requested_ = true;
      if (w.stubborn_) return;
    }
    w.End({143, 0});
  }
  void Kill() override {
    {
      absl::MutexLock lock(&worker_->mutex_);
      worker_->killed_ = true;
    }
    worker_->End({0, 9});
  }
  WorkerExit Wait() override {
    FakeWorker& w = *worker_;
    absl::MutexLock lock(&w.mutex_);
    w.mutex_.Await(absl::Condition(&w.ended_));
    return w.exit_;
  }

 private:
  const std::shared_ptr<FakeWorker> worker_;
};

class FakeLauncher final : public WorkerLauncher {
 public:
  absl::StatusOr<std::unique_ptr<WorkerProcess>> Launch(const WorkerCommand& command) override {
    absl::MutexLock lock(&mutex_);
    if (!launch_error_.ok()) return launch_error_;
    workers_.push_back(std::make_shared<FakeWorker>(command));
    return std::make_unique<FakeProcess>(workers_.back());
  }
  absl::Status EndOrphan(const std::string& handle) override {
    absl::MutexLock lock(&mutex_);
    orphans_.push_back(handle);
    return absl::OkStatus();
  }

  // The nth worker that was launched, counted from 1; waits for it.
  std::shared_ptr<FakeWorker> AwaitWorker(size_t n) {
    absl::MutexLock lock(&mutex_);
    const auto there = [this, n] { return workers_.size() >= n; };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(30))) return nullptr;
    return workers_[n - 1];
  }
  size_t launched() {
    absl::MutexLock lock(&mutex_);
    return workers_.size();
  }
  std::vector<std::string> orphans() {
    absl::MutexLock lock(&mutex_);
    return orphans_;
  }
  void set_launch_error(const absl::Status& status) {
    absl::MutexLock lock(&mutex_);
    launch_error_ = status;
  }

 private:
  absl::Mutex mutex_;
  std::vector<std::shared_ptr<FakeWorker>> workers_;
  std::vector<std::string> orphans_;
  absl::Status launch_error_;
};

}  // namespace ptq::testing

#endif  // PTQ_TESTS_SERVER_FAKE_LAUNCHER_H_
