#include "observers/observed_block.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "absl/strings/str_format.h"
#include "algorithms/cuda/device_kernels.h"
#include "common/status_macros.h"
#include "common/torch_status.h"

namespace ptq {
namespace {

// |y - y*|² / |y*|² of each token of [S, T, D], [S, T] float32 on `device`: by one kernel, or
// sample by sample from host memory, to the same bits.
at::Tensor TokenErrors(const at::Tensor& outputs, const at::Tensor& targets, at::Device device) {
  const CudaApi& cuda = CudaKernels();
  const int64_t samples = outputs.size(0);
  at::Tensor errors =
      at::empty(outputs.sizes().slice(0, 2), at::TensorOptions(device).dtype(at::kFloat));
  const int64_t step = outputs.is_cuda() ? samples : 1;
  for (int64_t begin = 0; begin < samples; begin += step) {
    const at::Tensor values = ToDevice(outputs.narrow(0, begin, step), device).contiguous();
    const at::Tensor expected = ToDevice(targets.narrow(0, begin, step), device).contiguous();
    at::Tensor part = errors.narrow(0, begin, step);
    CheckCuda(cuda.row_errors({.values = values.const_data_ptr(),
                               .targets = expected.const_data_ptr(),
                               .errors = part.mutable_data_ptr<float>(),
                               .rows = part.numel(),
                               .width = outputs.size(2),
                               .dtype = HiddenDtypeOf(outputs.scalar_type())},
                              cuda.current_stream()));
  }
  return errors;
}

// Sum over tokens that count of |y - y*|² / |y*|², and their number: [2] float64 on the device.
at::Tensor RelativeErrors(const at::Tensor& outputs, const at::Tensor& targets,
                          const at::Tensor& mask) {
  if (mask.is_cuda() && outputs.element_size() == 2 && outputs.size(2) % kHiddenPack == 0) {
    const at::Tensor counts = mask.ne(0);
    const at::Tensor errors = TokenErrors(outputs, targets, mask.device());
    return at::stack({at::where(counts, errors, at::zeros({}, errors.options())).sum(at::kDouble),
                      counts.sum(at::kDouble)});
  }
  at::Tensor sums = at::zeros({2}, mask.options().dtype(at::kDouble));
  for (int64_t sample = 0; sample < outputs.size(0); ++sample) {  // one in float32 at a time
    const auto wide = [&](const at::Tensor& chain) {
      return ToDevice(chain.select(0, sample), mask.device()).to(at::kFloat);
    };
    const at::Tensor target = wide(targets);
    const at::Tensor error =
        (wide(outputs) - target).square().sum(-1) / target.square().sum(-1).clamp_min(1e-30);
    const at::Tensor counts = mask.select(0, sample).ne(0);
    sums.select(0, 0).add_(at::where(counts, error, at::zeros_like(error)).sum(at::kDouble));
    sums.select(0, 1).add_(counts.sum());
  }
  return sums;
}

}  // namespace

std::vector<LinearStatistics> ObserveLinears(const DecoderBlock& block, const at::Tensor& inputs,
                                             const RotaryTable& rotary, int64_t micro_batch,
                                             bool hessians) {
  at::NoGradGuard no_grad;
  LinearObserver observer(block, hessians);
  const LinearFunction observe = observer.Observe();
  const size_t last = block.linears().size() - 1;
  const LinearFunction apply = [&](size_t index, const at::Tensor& input) {
    if (index < last) {
      return observe(index, input);
    }
    // No linear needs this one's output, which would be computed for nothing.
    observer.Record(index, input);
    std::vector<int64_t> shape = input.sizes().vec();
    shape.back() = block.linears()[index].weight.size(0);
    return at::zeros({1}, input.options()).expand(shape);
  };
  const int64_t tokens = inputs.size(0) * inputs.size(1);
  const int64_t every = hessians ? 1 : std::max<int64_t>(1, tokens / kImportanceTokens);
  const auto observe_from = [&](int64_t first) {
    for (int64_t begin = first; begin < inputs.size(0); begin += every * micro_batch) {
      const int64_t count = std::min(micro_batch, inputs.size(0) - begin);
      block.Forward(ToDevice(inputs.narrow(0, begin, count), DeviceOf(block)), rotary, apply);
    }
  };
  observe_from(0);
  if (every > 1 && !observer.SawAll()) {
    for (int64_t skipped = 1; skipped < every; ++skipped) observe_from(skipped * micro_batch);
  }
  return observer.Finish();
}

absl::StatusOr<std::unique_ptr<BlockInputObserver>> BlockInputObserver::Create(
    const DecoderModel& model, const at::Tensor& ids, const BlockInputOptions& options) {
  if (options.micro_batch < 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a micro-batch of %d samples: it must be at least 1", options.micro_batch));
  }
  const auto embed = [&](const DecoderModel& from) {
    return options.allocate ? from.Embed(ids, options.allocate) : from.Embed(ids);
  };
  PTQ_ASSIGN_OR_RETURN(const at::Tensor quantized,
                       embed(options.quantized != nullptr ? *options.quantized : model));
  at::Tensor full_precision = quantized;
  if (options.full_precision && options.quantized != nullptr) {
    PTQ_ASSIGN_OR_RETURN(full_precision, embed(model));
  }
  if (options.held_out < 0 || options.held_out >= ids.size(0)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d of %d samples cannot be held out", options.held_out, ids.size(0)));
  }
  if (options.held_out > 0 && !options.full_precision) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%d samples are held out, but there is no full-precision chain", options.held_out));
  }
  return CatchTorchErrors(
      "block inputs", [&]() -> absl::StatusOr<std::unique_ptr<BlockInputObserver>> {
        std::unique_ptr<BlockInputObserver> observer(new BlockInputObserver(options));
        if (options.full_precision) observer->full_precision_ = full_precision;
        observer->quantized_ = quantized;
        observer->inputs_.token_mask =
            LastPositionMask(ids.size(0) - options.held_out, ids.size(1), model.options().device);
        observer->rotary_ = model.MakeRotaryTable(ids.size(1));
        observer->ShowInputs();
        return observer;
      });
}

at::Tensor BlockInputObserver::RunFullPrecision(const DecoderBlock& block,
                                                const LinearFunction& apply) {
  at::Tensor outputs;
  if (options_.allocate && !ChainsAreEqual()) {
    outputs = full_precision_;
  } else if (options_.allocate) {
    outputs = options_.allocate(full_precision_.sizes(), full_precision_.scalar_type());
  } else {
    outputs = at::empty_like(full_precision_, at::MemoryFormat::Contiguous);
  }
  const int64_t held_out = options_.held_out;
  const int64_t samples = full_precision_.size(0) - held_out;
  at::Tensor seen = outputs.narrow(0, 0, samples);
  RunBlockInto(block, full_precision_.narrow(0, 0, samples), rotary_, options_.micro_batch, apply,
               seen);
  if (held_out > 0) {
    at::Tensor unseen = outputs.narrow(0, samples, held_out);
    RunBlockInto(block, full_precision_.narrow(0, samples, held_out), rotary_, options_.micro_batch,
                 {}, unseen);
  }
  return outputs;
}

void BlockInputObserver::ShowInputs() {
  const int64_t samples = quantized_.size(0) - options_.held_out;
  inputs_.quantized = quantized_.narrow(0, 0, samples);
  if (options_.full_precision) {
    inputs_.full_precision =
        ChainsAreEqual() ? inputs_.quantized : full_precision_.narrow(0, 0, samples);
  }
}

absl::StatusOr<ObservedBlock> BlockInputObserver::Observe(const DecoderBlock& block) {
  return CatchTorchErrors(block.name(), [&]() -> absl::StatusOr<ObservedBlock> {
    ObservedBlock observed;
    observed.block = &block;
    observed.rotary = &rotary_;
    observed.inputs = &inputs_;
    observed.micro_batch = options_.micro_batch;
    const bool hessians = options_.statistics == InputStatistics::kHessian;
    LinearObserver observer(block, hessians);
    const bool at_once = options_.statistics != InputStatistics::kNone && ChainsAreEqual();
    if (options_.full_precision) {
      observed.tokens.assign(block.linears().size(), 0);
      const LinearFunction count = [&](size_t index, const at::Tensor& input) {
        observed.tokens[index] += input.numel() / input.size(-1);
        const Linear& linear = block.linears()[index];
        return ApplyLinear(linear, linear.weight, input);
      };
      outputs_ = RunFullPrecision(block, at_once ? observer.Observe() : count);
      observed.targets = outputs_.narrow(0, 0, outputs_.size(0) - options_.held_out);
    }
    if (at_once) {
      observed.statistics = observer.Finish();
    } else if (options_.statistics != InputStatistics::kNone) {
      observed.statistics =
          ObserveLinears(block, inputs_.quantized, rotary_, options_.micro_batch, hessians);
    }
    if (!observed.statistics.empty()) {
      observed.tokens.clear();
      for (const LinearStatistics& linear : observed.statistics) {
        observed.tokens.push_back(linear.tokens);
      }
    }
    return observed;
  });
}

absl::StatusOr<ReconstructionError> BlockInputObserver::Replay(
    const DecoderBlock& block, const std::vector<at::Tensor>& quantized_weights) {
  PTQ_RETURN_IF_ERROR(CatchTorchErrors(block.name(), [&] {
    if (options_.full_precision) outputs_ = RunFullPrecision(block, {});
    return absl::OkStatus();
  }));
  return Advance(block, quantized_weights);
}

absl::StatusOr<ReconstructionError> BlockInputObserver::Advance(
    const DecoderBlock& block, const std::vector<at::Tensor>& quantized_weights) {
  if (quantized_weights.size() != block.linears().size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %d quantized weights were given for %d linear layers", block.name(),
                        quantized_weights.size(), block.linears().size()));
  }
  return CatchTorchErrors(block.name(), [&]() -> absl::StatusOr<ReconstructionError> {
    TORCH_CHECK(outputs_.defined() || !options_.full_precision,
                "the block was not observed before its chains advance");
    const bool unchanged = std::none_of(quantized_weights.begin(), quantized_weights.end(),
                                        [](const at::Tensor& weight) { return weight.defined(); });
    if (ChainsAreEqual() && unchanged) {
      full_precision_ = outputs_;
      quantized_ = outputs_;
      ShowInputs();
      return ReconstructionError{};
    }
    std::vector<at::Tensor> weights;
    for (size_t index = 0; index < quantized_weights.size(); ++index) {
      const at::Tensor& own = block.linears()[index].weight;
      const at::Tensor& quantized = quantized_weights[index];
      weights.push_back(quantized.defined() ? quantized.to(own.options()) : own);
    }
    const LinearFunction apply = [&](size_t index, const at::Tensor& input) {
      return ApplyLinear(block.linears()[index], weights[index], input);
    };
    const int64_t samples = quantized_.size(0) - options_.held_out;
    if (options_.full_precision) full_precision_ = outputs_;
    at::Tensor seen = quantized_.narrow(0, 0, samples);
    RunBlockInto(block, seen, rotary_, options_.micro_batch, apply, seen);
    if (options_.held_out > 0) {
      at::Tensor unseen = quantized_.narrow(0, samples, options_.held_out);
      RunBlockInto(block, unseen, rotary_, options_.micro_batch, apply, unseen);
    }
    ShowInputs();
    return MeasureError();
  });
}

ReconstructionError BlockInputObserver::MeasureError() const {
  const int64_t held_out = options_.held_out;
  if (held_out == 0) return {};
  const int64_t samples = quantized_.size(0) - held_out;
  const at::Tensor sums =
      at::cat({RelativeErrors(inputs_.quantized, inputs_.full_precision, inputs_.token_mask),
               RelativeErrors(
                   quantized_.narrow(0, samples, held_out),
                   full_precision_.narrow(0, samples, held_out),
                   LastPositionMask(held_out, quantized_.size(1), inputs_.token_mask.device()))})
          .cpu();
  const double* sum = sums.const_data_ptr<double>();
  // Windows of one token have none that counts, and no error.
  return {.calibration = sum[1] > 0 ? sum[0] / sum[1] : 0,
          .held_out = sum[3] > 0 ? sum[2] / sum[3] : 0,
          .held_out_samples = held_out};
}

}  // namespace ptq
