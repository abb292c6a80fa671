#include "worker/memory_plan.h"

#include <c10/core/ScalarType.h>

#include <algorithm>
#include <map>

#include "common/status_macros.h"
#include "formats/headers/tensor_table.h"

namespace ptq {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

// Tokens of a forward pass over calibration data, on a CPU, on a GPU, which small products leave
// half idle, and there in low memory.
constexpr int64_t kHostForwardTokens = 4096;
constexpr int64_t kForwardTokens = 16384;
constexpr int64_t kSmallForwardTokens = 4096;
// Of the Fisher pass on a CPU, where activations are what it takes most memory for.
constexpr int64_t kHostFisherTokens = 512;

// Of what is free at first: what libraries load later, pieces that are too small to be used.
int64_t Reserve(int64_t free_bytes) { return 512 * kMiB + free_bytes / 20; }

// At most, of DeviceAttention; micro-batches take their part.
constexpr int64_t kAttentionWorkspace = 1280 * kMiB;
constexpr int64_t kLogits = 128 * kMiB;  // chunks of a vocabulary

// Estimates in bytes, on the device. Widths count what FusedPass and the blocks' own Forward hold
// at their peak; other blocks take somewhat more, which a retry with halves makes up for.
class Estimate {
 public:
  Estimate(const MemoryShape& shape, bool chains_on_host) : s_(shape), host_(chains_on_host) {}

  // Of the hidden states of all samples at one place in the model.
  int64_t Chain() const { return Hidden(s_.samples + s_.held_out); }
  // On the device: the quantized one; tuning has full precision and its outputs beside it.
  int64_t Chains() const { return host_ ? 0 : (s_.tunes ? 3 : 1) * Chain(); }
  // Of these, what there is during the Fisher pass: the embedding, which all begin with.
  int64_t FirstChain() const { return host_ ? 0 : Chain(); }

  int64_t Forward(int64_t samples) const {
    const int64_t width = QueryKeyValue() + 2 * s_.attention + 6 * s_.hidden + 4 * s_.intermediate;
    // The block, its quantized weights, and float32 copies of its largest layer.
    int64_t bytes = 2 * Weights() + 4 * s_.block_elements + Activations(samples, width);
    if (s_.hessians) {
      bytes +=
          16 * (s_.widest_input * s_.widest_input + s_.hidden * s_.hidden) + 4 * s_.expert_hessians;
    }
    return bytes;
  }

  int64_t Fisher(int64_t samples) const {
    const int64_t width = QueryKeyValue() + 2 * s_.attention + 12 * s_.hidden + 8 * s_.intermediate;
    const int64_t block = Weights() + Activations(samples, width) + 12 * s_.hidden * s_.hidden;
    const int64_t head = s_.vocabulary * s_.hidden * s_.element_bytes + kLogits;
    return Hidden(s_.fisher_samples) + std::max(block, head);
  }

  int64_t Tuning(int64_t samples) const {
    const bool parts = samples < s_.batch;
    int64_t bytes = 2 * Weights();  // the block's, and gradients
    // U, m, v and codes or decoded weights; or V, the best codes and decoded weights.
    bytes += s_.block_elements *
             (s_.learns_scales ? 8 + (s_.fp8 ? 1 : s_.element_bytes) : 5 + s_.element_bytes);
    if (parts) bytes += Weights() / 2;  // a product beside the sum that it is added to
    if (host_) bytes += 4 * Hidden(s_.batch);
    int64_t width = QueryKeyValue() + s_.attention + 10 * s_.hidden + 5 * s_.intermediate;
    if (s_.fp8) width += 2 * s_.hidden + 3 * s_.intermediate / 2;
    const int64_t work = Activations(samples, width) + kAttentionWorkspace * samples / s_.batch;
    // Without saving, what the first steps had stays beside the captured graph's own memory.
    bytes += parts || host_ ? work : 2 * work;
    return bytes + 14 * s_.hidden * s_.hidden;  // the metric and what it is made of
  }

 private:
  int64_t Weights() const { return s_.block_elements * s_.element_bytes; }
  int64_t QueryKeyValue() const { return s_.attention + s_.key_value; }
  int64_t Activations(int64_t samples, int64_t width) const {
    return samples * s_.length * width * s_.element_bytes;
  }
  int64_t Hidden(int64_t samples) const { return Activations(samples, s_.hidden); }

  const MemoryShape& s_;
  const bool host_;
};

MicroBatches SizesFor(const MemoryShape& shape, int64_t forward_tokens, int64_t fisher_tokens,
                      int64_t tuning) {
  const auto samples = [&](int64_t tokens) {
    return shape.length > 0 ? std::clamp<int64_t>(tokens / shape.length, 1, shape.samples) : 1;
  };
  return {.forward = samples(forward_tokens), .fisher = samples(fisher_tokens), .tuning = tuning};
}

MemoryPlan PlanFor(const MemoryShape& shape, bool chains_on_host, const MicroBatches& sizes) {
  const Estimate estimate(shape, chains_on_host);
  int64_t blocks = estimate.Forward(sizes.forward);
  if (shape.tunes) blocks = std::max(blocks, estimate.Tuning(sizes.tuning));
  MemoryPlan plan;
  plan.micro_batches = sizes;
  plan.chains_on_host = chains_on_host;
  plan.needed_bytes = blocks + estimate.Chains();
  if (shape.fisher_samples > 0) {
    plan.needed_bytes =
        std::max(plan.needed_bytes, estimate.FirstChain() + estimate.Fisher(sizes.fisher));
  }
  return plan;
}

// A quarter of the device each for kept weights and outputs, but no more weights than chains leave
// of half of it, and neither more than is free.
void ShareOut(const MemoryShape& shape, const CudaMemory& device, MemoryPlan& plan) {
  const Estimate estimate(shape, plan.chains_on_host);
  const int64_t quarter = device.total_bytes / 4;
  const int64_t left = device.free_bytes - Reserve(device.free_bytes) - plan.needed_bytes;
  plan.kept_weights =
      std::clamp<int64_t>(std::min(2 * quarter - estimate.Chains(), left), 0, quarter);
  const int64_t beside_fisher = device.free_bytes - Reserve(device.free_bytes) - plan.kept_weights -
                                estimate.FirstChain() - estimate.Fisher(plan.micro_batches.fisher);
  plan.fisher_outputs = std::clamp<int64_t>(beside_fisher, 0, quarter);
}

// MemoryShape::intermediate.
int64_t InnerWidth(const ModelConfig& config) {
  const ExpertOptions& experts = config.experts;
  const bool all_routed =
      !experts.routed.empty() &&
      std::all_of(experts.routed.begin(), experts.routed.end(), [](bool routed) { return routed; });
  const int64_t routed =
      experts.router.experts_per_token * (experts.intermediate_size + config.hidden_size) +
      experts.shared_intermediate_size;
  return all_routed ? routed : std::max(config.intermediate_size, routed);
}

}  // namespace

Json MicroBatchesToJson(const MicroBatches& sizes) {
  return {{"forward", sizes.forward}, {"fisher", sizes.fisher}, {"tuning", sizes.tuning}};
}

absl::StatusOr<MicroBatches> MicroBatchesFromJson(const Json& json) {
  MicroBatches sizes;
  for (const auto& [name, field] :
       {std::pair{"forward", &sizes.forward}, std::pair{"fisher", &sizes.fisher},
        std::pair{"tuning", &sizes.tuning}}) {
    if (!json.is_object() || !json.contains(name) || !json[name].is_number_integer() ||
        json[name].get<int64_t>() < 1) {
      return absl::DataLossError(std::string("micro-batches: ") + name +
                                 " is not a positive integer");
    }
    *field = json[name].get<int64_t>();
  }
  return sizes;
}

std::optional<MicroBatches> Halved(const MicroBatches& sizes) {
  const auto half = [](int64_t samples) { return (samples + 1) / 2; };
  const MicroBatches halves = {half(sizes.forward), half(sizes.fisher), half(sizes.tuning)};
  if (halves == sizes) return std::nullopt;
  return halves;
}

MemoryShape ShapeOf(const JobPlan& plan) {
  const JobSpec& spec = plan.spec;
  const ModelConfig& config = plan.inspection.config;
  MemoryShape shape;
  shape.on_gpu = plan.compute.device.is_cuda();
  if (!spec.calibration.empty()) {
    shape.samples = spec.samples;
    shape.held_out = HeldOutWindows(spec);
    shape.fisher_samples = FisherWindows(spec, config.hidden_size);
    shape.batch = std::min(spec.batch_size, spec.samples);
    shape.length = spec.sequence_length;
  }
  shape.hidden = config.hidden_size;
  shape.intermediate = InnerWidth(config);
  const LatentAttentionConfig& latent = config.latent_attention;
  if (latent.key_value_rank > 0) {  // keys of all heads, and values as wide as they are
    shape.attention = config.num_attention_heads * latent.head_dim();
    shape.key_value = 2 * shape.attention;
  } else {
    shape.attention = config.num_attention_heads * config.head_dim;
    shape.key_value = 2 * config.num_key_value_heads * config.head_dim;
  }
  const ExpertOptions& experts = config.experts;
  shape.expert_hessians =
      experts.router.experts * (config.hidden_size * config.hidden_size +
                                experts.intermediate_size * experts.intermediate_size);
  shape.vocabulary = config.vocab_size;
  std::map<int64_t, int64_t> blocks;
  for (const TableTensor& tensor : BuildTensorTable(config)) {
    if (tensor.block < 0) continue;
    int64_t elements = 1;
    for (const int64_t size : tensor.shape) elements *= size;
    if (tensor.role == TensorRole::kLinearWeight) {
      shape.widest_input = std::max(shape.widest_input, tensor.shape[1]);
    }
    shape.block_elements = std::max(shape.block_elements, blocks[tensor.block] += elements);
  }
  shape.element_bytes = static_cast<int64_t>(c10::elementSize(plan.compute.dtype));
  shape.tunes = spec.algorithm == Algorithm::kAutoRound;
  shape.learns_scales = LearnsScales(spec);
  shape.fp8 = plan.tuning_precision == TuningPrecision::kFp8;
  shape.hessians = spec.algorithm == Algorithm::kGptq;
  return shape;
}

MemoryPlan PlanMemory(const MemoryShape& shape, const CudaMemory& device, LowMemory choice,
                      const std::optional<MicroBatches>& fixed) {
  if (!shape.on_gpu) {
    return {.micro_batches = fixed.value_or(
                SizesFor(shape, kHostForwardTokens, kHostFisherTokens, shape.batch))};
  }
  // From the fastest to the smallest.
  std::vector<MemoryPlan> plans;
  const auto add = [&](bool chains_on_host, int64_t forward_tokens, int64_t tuning) {
    plans.push_back(
        PlanFor(shape, chains_on_host,
                fixed.value_or(SizesFor(shape, forward_tokens, forward_tokens, tuning))));
  };
  const bool low = choice == LowMemory::kOn;
  if (!low) add(false, kForwardTokens, shape.batch);
  const auto halves = [&](bool chains_on_host, int64_t most_tokens, int64_t least_tokens) {
    for (int64_t tuning = shape.batch;; tuning = (tuning + 1) / 2) {
      const int64_t tokens = tuning * shape.length;
      if (tokens <= most_tokens || tuning == 1) add(chains_on_host, kSmallForwardTokens, tuning);
      if (tokens <= least_tokens || tuning == 1) return;
    }
  };
  // Copies behind the steps cost less than smaller products do.
  if (!low) halves(false, shape.batch * shape.length, kSmallTuningTokens);
  halves(true, low ? kLeastTuningTokens : shape.batch * shape.length, 0);
  const int64_t free_bytes = device.free_bytes - Reserve(device.free_bytes);
  const auto fits = std::find_if(plans.begin(), plans.end(), [&](const MemoryPlan& plan) {
    return plan.needed_bytes <= free_bytes;
  });
  MemoryPlan plan = fits != plans.end() ? *fits : plans.back();
  plan.low = low || fits != plans.begin();
  if (!low) ShareOut(shape, device, plan);
  return plan;
}

}  // namespace ptq
