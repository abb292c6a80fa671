#include "observers/fisher_observer.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>

#include "common/status_macros.h"
#include "common/torch_status.h"
#include "models/input_gradient.h"
#include "observers/block_inputs.h"
#include "observers/hidden_store.h"
#include "observers/sampled_labels.h"

namespace ptq {
namespace {

// Logits that exist at once, a few copies of them: 16 MiB each in float32, on a GPU 256 MiB. Each
// chunk reads the whole head.
constexpr int64_t kLogitsPerChunk = int64_t{1} << 22;
constexpr int64_t kDeviceLogitsPerChunk = int64_t{1} << 26;

// dCE / d hidden of `hidden` [n, D], the last block's outputs, in its dtype.
at::Tensor HeadGradient(const LanguageModelHead& head, const at::Tensor& hidden, uint64_t seed,
                        int64_t first_token) {
  at::Tensor leaf = hidden.detach();
  leaf.set_requires_grad(true);
  at::Tensor normalized;
  {
    const at::AutoGradMode with_grad(true);
    normalized = head.Normalize(leaf);
  }
  const at::Tensor logits = head.Project(normalized.detach());
  const at::Tensor gradient = head.ProjectBackward(
      SampledGradient(logits, seed, first_token, normalized.scalar_type()), logits);
  return torch::autograd::grad({normalized}, {leaf}, {gradient.to(normalized.scalar_type())})[0];
}

// sum over tokens of rms(y)² g gᵀ, added to `sum` [D, D] float32.
void AddOuterProducts(const at::Tensor& output, const at::Tensor& gradient, at::Tensor& sum) {
  const at::NoTF32Guard no_tf32;
  if (gradient.is_cuda() && gradient.scalar_type() == at::kBFloat16) {
    // Sums in float32 of products rounded once more than the gradients are.
    const at::Tensor rms =
        at::linalg_vector_norm(output, 2, at::IntArrayRef{-1}, /*keepdim=*/true, at::kFloat)
            .div_(std::sqrt(static_cast<double>(output.size(-1))));
    const at::Tensor rows = (gradient * rms).to(at::kBFloat16).flatten(0, -2);
    sum.add_(at::mm(rows.t(), rows, at::kFloat));
    return;
  }
  const at::Tensor rms = output.to(at::kFloat).square().mean(-1, true).sqrt();
  const at::Tensor rows = (gradient.to(at::kFloat) * rms).flatten(0, -2);
  sum.addmm_(rows.t(), rows);
}

}  // namespace

absl::Status FisherObserver::Observe(
    const at::Tensor& embedding, const CancellationToken& cancel,
    const std::function<void(double)>& progress,
    const std::function<absl::Status(int64_t, const at::Tensor&)>& consume) {
  return CatchTorchErrors("Fisher pass", [&]() -> absl::Status {
    const c10::InferenceMode no_inference(false);
    const at::NoGradGuard no_grad;
    const int64_t blocks = model_.block_count();
    const int64_t samples = embedding.size(0);
    const int64_t length = embedding.size(1);
    const int64_t step = options_.micro_batch;
    const RotaryTable rotary = model_.MakeRotaryTable(length);
    // Forward and backward of a block cost about one to three.
    const double all_work = static_cast<double>(blocks) * 4 + 1;
    double work = 0;
    const auto advance = [&](double done) {
      work += done;
      if (progress) progress(std::min(1.0, work / all_work));
    };

    // Slot b: the output of block b. The last one: the gradient of the block in hand's output.
    at::Tensor hidden = embedding;
    const std::vector<int64_t> shape = hidden.sizes().vec();
    const at::TensorOptions options = hidden.options().device(model_.options().device);
    PTQ_ASSIGN_OR_RETURN(HiddenStore store,
                         HiddenStore::Create(blocks + 1, shape, options,
                                             {.device_bytes = options_.device_bytes,
                                              .folder = options_.scratch_folder}));
    const int64_t gradient_slot = blocks;
    for (int64_t index = 0; index < blocks; ++index) {
      PTQ_ASSIGN_OR_RETURN(const auto block, loader_.Load(index, std::min(index + 1, blocks - 1)));
      for (int64_t begin = 0; begin < samples; begin += step) {
        PTQ_RETURN_IF_ERROR(cancel.Check());
        const int64_t count = std::min(step, samples - begin);
        at::Tensor input;
        if (hidden.defined()) {
          input = ToDevice(hidden.narrow(0, begin, count), options.device());
        } else {
          PTQ_ASSIGN_OR_RETURN(input, store.Read(index - 1, begin, count));
        }
        PTQ_RETURN_IF_ERROR(store.Write(index, begin, block->Forward(input, rotary)));
      }
      hidden = at::Tensor();  // only the first block reads the embedding
      advance(1);
    }

    {
      PTQ_ASSIGN_OR_RETURN(const LanguageModelHead head, model_.LoadHead());
      const int64_t logits = options.device().is_cpu() ? kLogitsPerChunk : kDeviceLogitsPerChunk;
      const int64_t tokens = std::max<int64_t>(1, logits / head.head_weight.size(0));
      for (int64_t begin = 0; begin < samples; begin += step) {
        const int64_t count = std::min(step, samples - begin);
        PTQ_ASSIGN_OR_RETURN(const at::Tensor output, store.Read(blocks - 1, begin, count));
        const at::Tensor rows = output.flatten(0, 1);
        at::Tensor gradient = at::empty_like(rows);
        for (int64_t row = 0; row < rows.size(0); row += tokens) {
          PTQ_RETURN_IF_ERROR(cancel.Check());
          const int64_t chunk = std::min(tokens, rows.size(0) - row);
          gradient.narrow(0, row, chunk)
              .copy_(HeadGradient(head, rows.narrow(0, row, chunk), options_.seed,
                                  begin * length + row));
        }
        PTQ_RETURN_IF_ERROR(store.Write(gradient_slot, begin, gradient.view(output.sizes())));
      }
      advance(1);
    }

    for (int64_t index = blocks - 1; index >= 0; --index) {
      const int64_t below = index > 0 ? index - 1 : BlockLoader::kNone;
      PTQ_ASSIGN_OR_RETURN(const auto block, loader_.Load(index, below));
      at::Tensor fisher = at::zeros({shape[2], shape[2]}, options.dtype(at::kFloat));
      for (int64_t begin = 0; begin < samples; begin += step) {
        PTQ_RETURN_IF_ERROR(cancel.Check());
        const int64_t count = std::min(step, samples - begin);
        PTQ_ASSIGN_OR_RETURN(const at::Tensor output, store.Read(index, begin, count));
        PTQ_ASSIGN_OR_RETURN(const at::Tensor gradient, store.Read(gradient_slot, begin, count));
        AddOuterProducts(output, gradient, fisher);
        if (index == 0) continue;  // nothing is observed below
        PTQ_ASSIGN_OR_RETURN(const at::Tensor input, store.Read(below, begin, count));
        PTQ_RETURN_IF_ERROR(
            store.Write(gradient_slot, begin, InputGradient(*block, input, rotary, gradient)));
      }
      PTQ_RETURN_IF_ERROR(consume(index, fisher.div_(static_cast<double>(samples * length))));
      advance(3);
    }
    return absl::OkStatus();
  });
}

}  // namespace ptq
