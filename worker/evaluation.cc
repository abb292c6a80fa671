#include "worker/evaluation.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "common/logging.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "common/torch_status.h"
#include "observers/block_inputs.h"

namespace ptq {
namespace {

// Hidden states of both chains that are held at once.
constexpr int64_t kHiddenBytes = int64_t{1} << 30;
// Tokens of one forward pass: enough to fill a product, small beside a block's weights.
constexpr int64_t kForwardTokens = 4096;
// Elements of one tensor of logits: five or six of them live at once while a slice is scored.
constexpr int64_t kLogitElements = int64_t{16} << 20;

class Evaluator {
 public:
  explicit Evaluator(const EvaluationRequest& request)
      : request_(request),
        model_(request.loader.model()),
        samples_(request.windows.size(0)),
        length_(request.windows.size(1)),
        micro_batch_(std::clamp<int64_t>(kForwardTokens / length_, 1, samples_)) {}

  absl::StatusOr<EvaluationResult> Run();

 private:
  int64_t HiddenBytes() const {  // of one window
    const ComputeOptions& options = model_.options();
    return length_ * model_.config().hidden_size *
           static_cast<int64_t>(c10::elementSize(options.dtype));
  }
  // Hidden states behind the last block for windows [begin, end), of the original model unless it
  // is in the cache, and of the quantized one.
  absl::Status RunBlocks(int64_t begin, int64_t end, at::Tensor* original, at::Tensor* quantized);
  // hidden [C, T, D], replaced in place slice by slice.
  absl::Status Advance(const DecoderBlock& block, at::Tensor* hidden, const LinearFunction& apply);
  absl::Status Score(int64_t begin, const at::Tensor& original, const at::Tensor& quantized);

  const EvaluationRequest& request_;
  const DecoderModel& model_;
  const int64_t samples_;
  const int64_t length_;
  const int64_t micro_batch_;
  RotaryTable rotary_;
  LanguageModelHead head_;
  LanguageModelHead quantized_head_;
  EvaluationResult result_;
};

absl::Status Evaluator::Advance(const DecoderBlock& block, at::Tensor* hidden,
                                const LinearFunction& apply) {
  for (int64_t i = 0; i < hidden->size(0); i += micro_batch_) {
    PTQ_RETURN_IF_ERROR(request_.cancel.Check());
    at::Tensor slice = hidden->narrow(0, i, std::min(micro_batch_, hidden->size(0) - i));
    slice.copy_(RunBlock(block, slice, rotary_, micro_batch_, apply));
  }
  return absl::OkStatus();
}

absl::Status Evaluator::RunBlocks(int64_t begin, int64_t end, at::Tensor* original,
                                  at::Tensor* quantized) {
  const at::Tensor windows = request_.windows.narrow(0, begin, end - begin);
  const DecoderModel* other = request_.quantized_embedding;
  PTQ_ASSIGN_OR_RETURN(*quantized, (other != nullptr ? *other : model_).Embed(windows));
  const bool run_original = !original->defined();
  if (run_original && other == nullptr) {
    *original = quantized->clone();
  } else if (run_original) {
    PTQ_ASSIGN_OR_RETURN(*original, model_.Embed(windows));
  }
  const int64_t blocks = model_.block_count();
  for (int64_t index = 0; index < blocks; ++index) {
    const bool last = index + 1 == blocks;
    const int64_t again = end < samples_ ? 0 : BlockLoader::kNone;
    PTQ_ASSIGN_OR_RETURN(const auto block, request_.loader.Load(index, last ? again : index + 1));
    if (run_original) PTQ_RETURN_IF_ERROR(Advance(*block, original, {}));
    PTQ_ASSIGN_OR_RETURN(const std::vector<at::Tensor> weights,
                         request_.quantized_weights(index, *block));
    PTQ_RETURN_IF_ERROR(Advance(*block, quantized, [&](size_t linear, const at::Tensor& input) {
      const Linear& layer = block->linears()[linear];
      return ApplyLinear(layer, weights[linear].defined() ? weights[linear] : layer.weight, input);
    }));
    const double done = static_cast<double>(begin) + static_cast<double>(end - begin) *
                                                         static_cast<double>(index + 1) /
                                                         static_cast<double>(blocks);
    // Scoring is the tenth part or so: the last step to 1 is the caller's.
    request_.progress(0.9 * done / static_cast<double>(samples_));
  }
  return absl::OkStatus();
}

absl::Status Evaluator::Score(int64_t begin, const at::Tensor& original,
                              const at::Tensor& quantized) {
  const int64_t rows = std::max<int64_t>(1, kLogitElements / model_.config().vocab_size);
  for (int64_t window = 0; window < original.size(0); ++window) {
    const at::Tensor ids = request_.windows[begin + window];
    for (int64_t from = 0; from < length_ - 1; from += rows) {
      PTQ_RETURN_IF_ERROR(request_.cancel.Check());
      const int64_t count = std::min(rows, length_ - 1 - from);
      result_.divergence.Add(head_.Logits(original[window].narrow(0, from, count)),
                             quantized_head_.Logits(quantized[window].narrow(0, from, count)),
                             ids.narrow(0, from + 1, count).to(original.device()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<EvaluationResult> Evaluator::Run() {
  c10::NoGradGuard no_grad;
  result_.windows = samples_;
  result_.window_length = length_;
  rotary_ = model_.MakeRotaryTable(length_);
  PTQ_ASSIGN_OR_RETURN(head_, model_.LoadHead());
  quantized_head_ = head_;
  if (request_.quantized_head != nullptr) {
    PTQ_ASSIGN_OR_RETURN(quantized_head_, request_.quantized_head->LoadHead());
  }
  const ComputeOptions& options = model_.options();
  std::optional<at::Tensor> cached = request_.cache.Find(request_.cache_key);
  if (cached &&
      (cached->sizes() != at::IntArrayRef({samples_, length_, model_.config().hidden_size}) ||
       cached->scalar_type() != options.dtype)) {
    cached.reset();
  }
  result_.baseline_from_cache = cached.has_value();
  const bool keep = !cached && request_.cache.Accepts(samples_ * HiddenBytes());
  std::vector<at::Tensor> kept;

  const int64_t chunk = std::clamp<int64_t>(kHiddenBytes / (2 * HiddenBytes()), 1, samples_);
  for (int64_t begin = 0; begin < samples_; begin += chunk) {
    const int64_t end = std::min(begin + chunk, samples_);
    at::Tensor original;
    if (cached) original = cached->narrow(0, begin, end - begin).to(options.device);
    at::Tensor quantized;
    PTQ_RETURN_IF_ERROR(RunBlocks(begin, end, &original, &quantized));
    PTQ_RETURN_IF_ERROR(Score(begin, original, quantized));
    if (keep) kept.push_back(original.cpu());
  }
  if (keep) {
    // The cache only saves time: that it can't be written is no reason to lose the job.
    const absl::Status stored = request_.cache.Store(request_.cache_key, at::cat(kept));
    if (!stored.ok()) PTQ_LOG(Warning) << "baseline cache: " << Message(stored);
  }
  return std::move(result_);
}

}  // namespace

absl::StatusOr<EvaluationResult> Evaluate(const EvaluationRequest& request) {
  return CatchTorchErrors("evaluation", [&] { return Evaluator(request).Run(); });
}

Json EvaluationToJson(const EvaluationResult& result) {
  const DivergenceFigures figures = result.divergence.Figures();
  const KldHistogram histogram = result.divergence.Histogram();
  Json quantized;
  quantized["perplexity"] = result.divergence.quantized_losses().Perplexity();
  quantized["mean_kld"] = figures.mean_kld;
  quantized["median_kld"] = figures.median_kld;
  quantized["p99_kld"] = figures.p99_kld;
  quantized["p999_kld"] = figures.p999_kld;
  quantized["max_kld"] = figures.max_kld;
  quantized["top1_agreement"] = figures.top1_agreement;
  quantized["rms_delta_p"] = figures.rms_delta_p;
  quantized["kld_histogram"] = {{"log10_min", KldHistogram::kLog10Min},
                                {"log10_max", KldHistogram::kLog10Max},
                                {"counts", histogram.counts}};
  Json json;
  json["windows"] = result.windows;
  json["window_length"] = result.window_length;
  json["scored_positions"] = result.divergence.positions();
  json["baseline_from_cache"] = result.baseline_from_cache;
  json["baseline"] = {{"perplexity", result.divergence.original_losses().Perplexity()}};
  json["quantized"] = std::move(quantized);
  return json;
}

}  // namespace ptq
