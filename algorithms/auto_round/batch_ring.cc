#include "algorithms/auto_round/batch_ring.h"

#include <ATen/ATen.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <utility>

namespace ptq {

BatchRing::BatchRing(std::vector<at::Tensor> chains, std::vector<int64_t> order, int64_t batch,
                     at::Device device)
    : chains_(std::move(chains)), order_(std::move(order)), batch_(batch), device_(device) {
  for (const at::Tensor& chain : chains_) {
    TORCH_CHECK(chain.device().is_cpu() && chain.is_contiguous(), "a chain in host memory");
    rings_.push_back(at::empty({kSteps * batch_, chain.size(1), chain.size(2)},
                               chain.options().device(device_).pinned_memory(false)));
  }
  const int64_t iterations = static_cast<int64_t>(order_.size()) / batch_;
  slots_ = at::arange(iterations, at::kLong)
               .remainder(kSteps)
               .mul(batch_)
               .unsqueeze(1)
               .add(at::arange(batch_, at::kLong))
               .to(device_);
  if (device_.is_cpu()) return;
  const c10::impl::VirtualGuardImpl implementation(device_.type());
  copies_ = implementation.getStreamFromGlobalPool(device_);
  for (int64_t slot = 0; slot < kSteps; ++slot) {
    copied_[slot].emplace(device_.type());
    // Whoever had the rings' memory before may still be at work on this stream.
    used_[slot].emplace(device_.type());
    used_[slot]->record(implementation.getStream(device_));
  }
}

BatchRing::~BatchRing() {
  if (copies_) copies_->synchronize();
}

void BatchRing::Begin(int64_t step) {
  if (fetched_ <= step) Fetch(step);
  if (copies_)
    copied_[step % kSteps]->block(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
  if (fetched_ <= step + 1 && (step + 1) * batch_ < static_cast<int64_t>(order_.size()))
    Fetch(step + 1);
}

void BatchRing::End(int64_t step) {
  if (copies_)
    used_[step % kSteps]->record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
}

void BatchRing::Fetch(int64_t step) {
  TORCH_CHECK(step == fetched_, "the steps of a ring come in order");
  const int64_t slot = step % kSteps;
  const auto copy = [&] {
    for (int64_t i = 0; i < batch_; ++i) {
      const int64_t sample = order_[static_cast<size_t>(step * batch_ + i)];
      for (size_t chain = 0; chain < chains_.size(); ++chain) {
        rings_[chain]
            .select(0, slot * batch_ + i)
            .copy_(chains_[chain].select(0, sample), /*non_blocking=*/true);
      }
    }
  };
  if (copies_) {
    const c10::StreamGuard on_copies(*copies_);
    used_[slot]->block(*copies_);
    copy();
    copied_[slot]->record(*copies_);
  } else {
    copy();
  }
  ++fetched_;
}

}  // namespace ptq
