// What the quantization cost: both models over the same held-out text, block by block.
#ifndef PTQ_WORKER_EVALUATION_H_
#define PTQ_WORKER_EVALUATION_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/cancellation.h"
#include "common/json.h"
#include "models/block_loader.h"
#include "worker/baseline_cache.h"
#include "worker/divergence.h"

namespace ptq {

struct EvaluationRequest {
  BlockLoader& loader;  // of the original model
  // Models that the quantized one has its embedding and its head of; nullptr: the original.
  const DecoderModel* quantized_embedding = nullptr;
  const DecoderModel* quantized_head = nullptr;
  const at::Tensor& windows;  // [S, T] int64, CPU; positions 1..T-1 of each are scored
  // The quantized weights of a block, by linear index, in the compute dtype on the device;
  // undefined: the block's own.
  std::function<absl::StatusOr<std::vector<at::Tensor>>(int64_t block, const DecoderBlock&)>
      quantized_weights;
  const BaselineCache& cache;
  std::string cache_key;  // hexadecimal; of everything that the original model's results depend on
  const CancellationToken& cancel;
  std::function<void(double fraction)> progress;
};

struct EvaluationResult {
  Divergence divergence;
  int64_t windows = 0;
  int64_t window_length = 0;
  bool baseline_from_cache = false;
};

// One block is in memory at a time, and about a gigabyte of hidden states: more windows than that
// are taken in several passes over the weights. Results do not depend on the cache.
absl::StatusOr<EvaluationResult> Evaluate(const EvaluationRequest& request);

// The report's `evaluation`: {windows, window_length, scored_positions, baseline, quantized}.
Json EvaluationToJson(const EvaluationResult& result);

}  // namespace ptq

#endif  // PTQ_WORKER_EVALUATION_H_
