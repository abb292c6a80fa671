#include "worker/write_behind.h"

#include <c10/core/GradMode.h>

#include <chrono>
#include <utility>

#include "common/status_macros.h"
#include "common/torch_status.h"

namespace ptq {

WriteBehind::~WriteBehind() {
  if (in_flight_.valid()) in_flight_.wait();
}

absl::Status WriteBehind::Start(std::function<absl::Status()> write) {
  PTQ_RETURN_IF_ERROR(Wait());
  in_flight_ = std::async(std::launch::async, [write = std::move(write)]() mutable {
    const c10::NoGradGuard no_grad;
    // The future keeps the closure until somebody asks for its result: what it holds goes before.
    const std::function<absl::Status()> once = std::exchange(write, nullptr);
    return CatchTorchErrors("writing", once);
  });
  return absl::OkStatus();
}

absl::Status WriteBehind::Check() {
  const bool over = in_flight_.valid() &&
                    in_flight_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  return over ? Wait() : status_;
}

absl::Status WriteBehind::Wait() {
  if (in_flight_.valid()) status_ = in_flight_.get();
  return status_;
}

}  // namespace ptq
