// Tells the open streams of a job that there may be something new to read.
#ifndef PTQ_SERVER_JOBS_JOB_EVENT_HUB_H_
#define PTQ_SERVER_JOBS_JOB_EVENT_HUB_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace ptq {

class JobListener {
 public:
  virtual ~JobListener() = default;
  // Something changed, or a second has passed. Called from any thread; must not block.
  virtual void Wake() = 0;
  // The server stops: no more calls follow.
  virtual void ServerStops() = 0;
};

// Thread-safe. Holds listeners weakly: one that is gone is simply no longer called.
class JobEventHub {
 public:
  // False if the server is stopping.
  bool Add(const std::string& job, const std::shared_ptr<JobListener>& listener);
  void Notify(const std::string& job);
  // Wakes everybody, so that heartbeats are sent. Called every second.
  void WakeAll();
  void Stop();

 private:
  std::vector<std::shared_ptr<JobListener>> TakeLiving(
      std::vector<std::weak_ptr<JobListener>>& listeners) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, std::vector<std::weak_ptr<JobListener>>> listeners_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ptq

#endif  // PTQ_SERVER_JOBS_JOB_EVENT_HUB_H_
