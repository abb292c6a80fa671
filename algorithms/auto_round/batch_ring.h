// Batches of chains that lie in host memory, on the device in time for their steps.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_BATCH_RING_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_BATCH_RING_H_

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

namespace ptq {

// Room for two batches of each chain: while a step works on one, the next one's is copied by the
// device's copy engine, on a stream of its own. The host only queues copies, so that it never
// waits, and no processor of the device is taken from the step. Methods throw c10::Error.
class BatchRing {
 public:
  // `chains` [S, T, D] each, contiguous, on the host (page-locked, or copies are not behind the
  // work); `order` has `batch` samples for each step. On a CPU, copies are made at once.
  BatchRing(std::vector<at::Tensor> chains, std::vector<int64_t> order, int64_t batch,
            at::Device device);
  ~BatchRing();  // waits for its copies
  BatchRing(const BatchRing&) = delete;
  BatchRing& operator=(const BatchRing&) = delete;

  // [2 · batch, T, D] on the device.
  const at::Tensor& samples(size_t chain) const { return rings_[chain]; }
  // [iterations, batch] int64 on the device: where in samples() those of each step are.
  const at::Tensor& slots() const { return slots_; }

  // Around a step's work on the current stream, steps in order: what is queued behind Begin finds
  // the step's samples in place. The next step's follow meanwhile. Begin may be called again for
  // the same step.
  void Begin(int64_t step);
  void End(int64_t step);

 private:
  static constexpr int64_t kSteps = 2;

  void Fetch(int64_t step);

  const std::vector<at::Tensor> chains_;
  const std::vector<int64_t> order_;
  const int64_t batch_;
  const at::Device device_;
  std::vector<at::Tensor> rings_;  // by chain
  at::Tensor slots_;
  int64_t fetched_ = 0;  // steps
  // None on a CPU.
  std::optional<c10::Stream> copies_;
  std::array<std::optional<c10::Event>, kSteps> copied_;
  std::array<std::optional<c10::Event>, kSteps> used_;  // nothing reads the samples any more
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_BATCH_RING_H_
