#include "server/jobs/job_event_hub.h"

#include <algorithm>
#include <utility>

namespace ptq {

bool JobEventHub::Add(const std::string& job, const std::shared_ptr<JobListener>& listener) {
  absl::MutexLock lock(&mutex_);
  if (stopped_) return false;
  listeners_[job].push_back(listener);
  return true;
}

std::vector<std::shared_ptr<JobListener>> JobEventHub::TakeLiving(
    std::vector<std::weak_ptr<JobListener>>& listeners) {
  std::vector<std::shared_ptr<JobListener>> living;
  listeners.erase(std::remove_if(listeners.begin(), listeners.end(),
                                 [&](const std::weak_ptr<JobListener>& weak) {
                                   auto listener = weak.lock();
                                   if (listener == nullptr) return true;
                                   living.push_back(std::move(listener));
                                   return false;
                                 }),
                  listeners.end());
  return living;
}

void JobEventHub::Notify(const std::string& job) {
  std::vector<std::shared_ptr<JobListener>> living;
  {
    absl::MutexLock lock(&mutex_);
    const auto entry = listeners_.find(job);
    if (entry == listeners_.end()) return;
    living = TakeLiving(entry->second);
    if (entry->second.empty()) listeners_.erase(entry);
  }
  // Outside of the lock: a listener may end, and its last owner is then this list.
  for (const auto& listener : living) listener->Wake();
}

void JobEventHub::WakeAll() {
  std::vector<std::shared_ptr<JobListener>> all;
  {
    absl::MutexLock lock(&mutex_);
    for (auto entry = listeners_.begin(); entry != listeners_.end();) {
      for (auto& listener : TakeLiving(entry->second)) all.push_back(std::move(listener));
      entry = entry->second.empty() ? listeners_.erase(entry) : std::next(entry);
    }
  }
  for (const auto& listener : all) listener->Wake();
}

void JobEventHub::Stop() {
  std::vector<std::shared_ptr<JobListener>> all;
  {
    absl::MutexLock lock(&mutex_);
    stopped_ = true;
    for (auto& [job, listeners] : listeners_) {
      for (auto& listener : TakeLiving(listeners)) all.push_back(std::move(listener));
    }
    listeners_.clear();
  }
  for (const auto& listener : all) listener->ServerStops();
}

}  // namespace ptq
