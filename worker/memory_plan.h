// How a job shares out the memory of its GPU: where hidden states lie, how many samples go through
// a block at once, what stays loaded.
#ifndef PTQ_WORKER_MEMORY_PLAN_H_
#define PTQ_WORKER_MEMORY_PLAN_H_

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "algorithms/cuda/cuda_runtime.h"
#include "common/json.h"
#include "worker/job_plan.h"
#include "worker/spec/job_spec.h"

namespace ptq {

// Samples that go through a block at once. They decide the bits of sums, and so of a job: chosen
// when it begins, and kept in its folder.
struct MicroBatches {
  int64_t forward = 1;  // of a pass over the calibration data
  int64_t fisher = 1;   // of the Fisher pass
  int64_t tuning = 1;   // of auto-round's steps; at most the batch

  bool operator==(const MicroBatches&) const = default;
};

Json MicroBatchesToJson(const MicroBatches& sizes);
// kDataLoss unless all are there and positive.
absl::StatusOr<MicroBatches> MicroBatchesFromJson(const Json& json);

// What to do after the device's memory was not enough: half of each, at least 1. None if there is
// nothing left to halve.
std::optional<MicroBatches> Halved(const MicroBatches& sizes);

// A job as memory sees it.
struct MemoryShape {
  bool on_gpu = false;
  // Samples.
  int64_t samples = 0;
  int64_t held_out = 0;
  int64_t fisher_samples = 0;
  int64_t batch = 1;
  int64_t length = 0;  // tokens of a sample; 0: no calibration data
  // Elements.
  int64_t hidden = 0;
  // Of a token: inner values of the MLP, or of its experts together with their inputs and outputs.
  int64_t intermediate = 0;
  int64_t attention = 0;  // heads · head_dim
  int64_t key_value = 0;  // of keys and values together
  int64_t vocabulary = 0;
  int64_t block_elements = 0;   // parameters of the largest block
  int64_t widest_input = 0;     // of a layer
  int64_t expert_hessians = 0;  // of a block's routed experts, all together
  int64_t element_bytes = 4;    // of the compute dtype
  bool tunes = false;           // auto-round
  bool learns_scales = false;   // by another recipe than paper
  bool fp8 = false;
  bool hessians = false;  // gptq
};
MemoryShape ShapeOf(const JobPlan& plan);

struct MemoryPlan {
  MicroBatches micro_batches;
  bool low = false;  // time is given for memory
  // Hidden states of the calibration samples in page-locked host memory rather than on the device.
  bool chains_on_host = false;
  int64_t kept_weights = 0;    // bytes of blocks that stay loaded from one pass to the next
  int64_t fisher_outputs = 0;  // bytes of outputs of blocks, while the Fisher pass runs
  int64_t needed_bytes = 0;    // on the device beside kept weights and outputs, an estimate
};

// `device`: free and all memory when the job begins. `fixed`: sizes of an earlier run, which are
// kept whatever the device. Auto: the fastest plan whose estimate fits, the smallest if none does.
// On: nothing kept, chains on the host, a step in micro-batches of at most kLeastTuningTokens. On a
// CPU nothing depends on its memory.
MemoryPlan PlanMemory(const MemoryShape& shape, const CudaMemory& device, LowMemory choice,
                      const std::optional<MicroBatches>& fixed);

// Tokens of a micro-batch of tuning: before hidden states go to the host, and in low memory. The
// second leave products efficient too.
inline constexpr int64_t kSmallTuningTokens = 8192;
inline constexpr int64_t kLeastTuningTokens = 4096;

}  // namespace ptq

#endif  // PTQ_WORKER_MEMORY_PLAN_H_
