#include "observers/output_error.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <utility>

#include "common/torch_status.h"

namespace ptq {
namespace {

constexpr int64_t kErrorTokens = 4096;

}  // namespace

int64_t ErrorSamples(int64_t samples, int64_t length) {
  return std::clamp<int64_t>(kErrorTokens / length, 1, samples);
}

at::Tensor SpreadSamples(const at::Tensor& inputs) {
  const int64_t samples = inputs.size(0);
  const int64_t count = ErrorSamples(samples, inputs.size(1));
  const at::Tensor indices = at::arange(count, at::kLong).mul_(samples).floor_divide_(count);
  return inputs.index_select(0, indices.to(inputs.device()));
}

at::Tensor SumOfSquares(const at::Tensor& y) {
  return at::linalg_vector_norm(y, 2, at::IntArrayRef{-1}, /*keepdim=*/false, at::kFloat)
      .to(at::kDouble)
      .square()
      .sum();
}

absl::StatusOr<std::vector<OutputError>> MeasureOutputErrors(const ObservedBlock& observed,
                                                             const CandidateWeights& candidates) {
  return CatchTorchErrors(
      observed.block->name(), [&]() -> absl::StatusOr<std::vector<OutputError>> {
        const at::NoGradGuard no_grad;
        const std::vector<Linear>& linears = observed.block->linears();
        std::vector<OutputError> errors(linears.size());
        std::vector<at::Tensor> sums;
        std::vector<std::pair<double*, double>>
            means;  // where the mean of sums[i] goes; of how many
        const auto apply = [&](size_t index, const at::Tensor& input) {
          const Linear& linear = linears[index];
          const at::Tensor output = at::linear(input, linear.weight);
          const std::vector<at::Tensor> quantized = candidates(index);
          OutputError& error = errors[index];
          error.tokens = input.numel() / input.size(-1);
          error.mse.resize(quantized.size());
          const auto values = static_cast<double>(output.numel());
          for (size_t i = 0; i < quantized.size(); ++i) {
            const at::Tensor difference =
                linear.weight.to(at::kFloat) - quantized[i].to(at::kFloat);
            sums.push_back(SumOfSquares(at::linear(input, difference.to(input.scalar_type()))));
            means.emplace_back(&error.mse[i], values);
          }
          if (!quantized.empty()) {
            sums.push_back(SumOfSquares(output));
            means.emplace_back(&error.mean_square, values);
          }
          return linear.bias.defined() ? output + linear.bias : output;
        };
        observed.block->Forward(
            ToDevice(SpreadSamples(observed.inputs->quantized), DeviceOf(*observed.block)),
            *observed.rotary, apply);
        if (sums.empty()) return errors;
        const at::Tensor host = at::stack(sums).cpu();
        for (size_t i = 0; i < means.size(); ++i) {
          *means[i].first = host.const_data_ptr<double>()[i] / means[i].second;
        }
        return errors;
      });
}

}  // namespace ptq
