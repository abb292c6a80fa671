#include "worker/write_behind.h"

#include <c10/core/GradMode.h>

#include <utility>

#include "common/status_macros.h"
#include "common/torch_status.h"

namespace ptq {
namespace {

// Releases what the function holds before it returns.
absl::Status RunOnce(std::function<absl::Status()>& function) {
  const std::function<absl::Status()> once = std::exchange(function, nullptr);
  return once ? CatchTorchErrors("writing", once) : absl::OkStatus();
}

}  // namespace

WriteBehind::~WriteBehind() {
  Wait().IgnoreError();
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
}

absl::Status WriteBehind::StatusLocked() const {
  if (!status_.ok()) return status_;
  for (const auto& item : to_commit_) {
    if (item->written && !item->status.ok()) return item->status;
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> WriteBehind::WaitForSlot() {
  std::unique_lock lock(mutex_);
  if (threads_.empty()) {
    for (int64_t slot = 0; slot < slots_; ++slot) {
      free_slots_.insert(slot);
      threads_.emplace_back([this] { WriteLoop(); });
    }
    threads_.emplace_back([this] { CommitLoop(); });
  }
  changed_.wait(lock,
                [&] { return reserved_slot_ || !free_slots_.empty() || !StatusLocked().ok(); });
  PTQ_RETURN_IF_ERROR(StatusLocked());
  if (!reserved_slot_) {
    reserved_slot_ = *free_slots_.begin();
    free_slots_.erase(free_slots_.begin());
  }
  return *reserved_slot_;
}

absl::Status WriteBehind::Start(std::function<absl::Status()> write,
                                std::function<absl::Status()> commit) {
  PTQ_RETURN_IF_ERROR(WaitForSlot().status());
  {
    const std::lock_guard lock(mutex_);
    auto item = std::make_shared<Item>();
    item->write = std::move(write);
    item->commit = std::move(commit);
    item->slot = *std::exchange(reserved_slot_, std::nullopt);
    to_write_.push_back(item);
    to_commit_.push_back(std::move(item));
  }
  changed_.notify_all();
  return absl::OkStatus();
}

absl::Status WriteBehind::Check() {
  const std::lock_guard lock(mutex_);
  return StatusLocked();
}

absl::Status WriteBehind::Wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return to_commit_.empty(); });
  return status_;
}

void WriteBehind::WriteLoop() {
  const c10::NoGradGuard no_grad;
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return ending_ || !to_write_.empty(); });
    if (to_write_.empty()) return;
    const std::shared_ptr<Item> item = std::move(to_write_.front());
    to_write_.pop_front();
    lock.unlock();
    absl::Status status = RunOnce(item->write);
    lock.lock();
    item->status = std::move(status);
    item->written = true;
    free_slots_.insert(item->slot);
    changed_.notify_all();
  }
}

void WriteBehind::CommitLoop() {
  const c10::NoGradGuard no_grad;
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock,
                  [&] { return ending_ || (!to_commit_.empty() && to_commit_.front()->written); });
    if (to_commit_.empty()) return;
    const std::shared_ptr<Item> item = to_commit_.front();
    if (status_.ok()) status_ = item->status;
    if (status_.ok()) {
      lock.unlock();
      absl::Status status = RunOnce(item->commit);
      lock.lock();
      status_ = std::move(status);
    }
    item->commit = nullptr;
    to_commit_.pop_front();
    changed_.notify_all();
  }
}

}  // namespace ptq
