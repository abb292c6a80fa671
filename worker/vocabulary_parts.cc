#include "worker/vocabulary_parts.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>

#include <string>
#include <utility>

#include "algorithms/affine/record_rows.h"
#include "algorithms/rtn/rtn.h"
#include "common/status_macros.h"
#include "observers/head_observer.h"
#include "observers/output_error.h"

namespace ptq {

absl::StatusOr<QuantizedModule> QuantizeEmbedding(const JobPlan& plan,
                                                  const EffectiveScheme& planned,
                                                  const CheckpointReader& reader,
                                                  const CancellationToken& cancel) {
  const std::string name = planned.module + ".weight";
  const auto row_bytes =
      planned.in_features * static_cast<int64_t>(c10::elementSize(plan.stored_dtype));
  const auto read = [&](int64_t begin, int64_t count) -> absl::StatusOr<at::Tensor> {
    at::Tensor rows =
        at::empty({count, planned.in_features}, at::TensorOptions().dtype(plan.stored_dtype));
    PTQ_RETURN_IF_ERROR(
        reader.ReadBytes(name, begin * row_bytes, count * row_bytes, rows.data_ptr()));
    return rows.to(plan.compute.device);
  };
  PTQ_ASSIGN_OR_RETURN(QuantizedLinear quantized,
                       QuantizeVocabulary({.module = planned.module,
                                           .rows = planned.out_features,
                                           .columns = planned.in_features,
                                           .read = read,
                                           .scheme = *planned.scheme,
                                           .stored_dtype = plan.stored_dtype,
                                           .method = RowMethod::kRtn,
                                           .statistics = {},
                                           .cancel = cancel,
                                           .progress = {}}));
  return QuantizedModule{planned.module, std::move(quantized.weight)};
}

ModuleResult DescribeEmbedding(const JobPlan& plan, const EffectiveScheme& planned) {
  ModuleResult result;
  result.name = planned.module;
  result.scheme = *planned.scheme;
  if (plan.spec.algorithm != Algorithm::kRtn) {
    result.fallback_reason = "embedding: rtn (a table has no inputs)";
  }
  return result;
}

HeadQuantizer::HeadQuantizer(const JobPlan& plan, const EffectiveScheme& planned,
                             const LanguageModelHead& head, at::Tensor hidden,
                             const CancellationToken& cancel)
    : plan_(plan),
      planned_(planned),
      head_(head),
      hidden_(std::move(hidden)),
      cancel_(cancel),
      method_(HeadMethodOf(plan.spec)) {
  result_.name = planned.module;
  result_.scheme = *planned.scheme;
  result_.fallback_reason = method_.reason;
}

absl::Status HeadQuantizer::Observe(int64_t micro_batch) {
  if (method_.statistics == InputStatistics::kNone) return absl::OkStatus();
  PTQ_ASSIGN_OR_RETURN(
      statistics_, ObserveHead(head_, planned_.module, hidden_, micro_batch, method_.statistics));
  result_.tokens = statistics_.tokens;
  return absl::OkStatus();
}

absl::Status HeadQuantizer::Quantize(const std::function<void(double fraction)>& progress) {
  PTQ_ASSIGN_OR_RETURN(
      QuantizedLinear quantized,
      QuantizeVocabulary({.module = planned_.module,
                          .rows = planned_.out_features,
                          .columns = planned_.in_features,
                          .read = [&](int64_t begin, int64_t count) -> absl::StatusOr<at::Tensor> {
                            return head_.head_weight.narrow(0, begin, count);
                          },
                          .scheme = *planned_.scheme,
                          .stored_dtype = plan_.stored_dtype,
                          .method = method_.method,
                          .statistics = std::move(statistics_),
                          .cancel = cancel_,
                          .progress = progress}));
  record_ = std::move(quantized.weight);
  result_.damping = quantized.damping;
  if (!quantized.fallback_reason.empty()) result_.fallback_reason = quantized.fallback_reason;
  return absl::OkStatus();
}

absl::Status HeadQuantizer::Measure() {
  if (!hidden_.defined()) return absl::OkStatus();
  PTQ_ASSIGN_OR_RETURN(const at::Tensor inputs, HeadErrorInputs(head_, hidden_));
  const int64_t rows = head_.head_weight.size(0);
  const bool rtn = plan_.spec.algorithm == Algorithm::kRtn;
  // Of the outputs, their errors, and those by rtn.
  at::Tensor sums = at::zeros({3}, at::TensorOptions(inputs.device()).dtype(at::kDouble));
  const auto add = [&](int64_t place, const at::Tensor& weight) {
    sums.select(0, place).add_(SumOfSquares(at::linear(inputs, weight.to(inputs.scalar_type()))));
  };
  const absl::Status summed = ForPiecesOfRows(
      rows, head_.head_weight.size(1), [&](int64_t begin, int64_t count) -> absl::Status {
        PTQ_RETURN_IF_ERROR(cancel_.Check());
        const at::Tensor weight = head_.head_weight.narrow(0, begin, count);
        const at::Tensor wide = weight.to(at::kFloat);
        const auto error = [&](const AffineQuantizedTensor& record) {
          return wide - EffectiveWeight(plan_, record).to(at::kFloat);
        };
        add(0, weight);
        add(1, error(RecordRows(record_, begin, count)));
        if (!rtn) add(2, error(QuantizeRtn(weight, plan_.stored_dtype, result_.scheme)));
        return absl::OkStatus();
      });
  PTQ_RETURN_IF_ERROR(summed);
  const at::Tensor host = sums.cpu();
  const double* sum = host.const_data_ptr<double>();
  const auto values = static_cast<double>(inputs.size(0) * rows);
  result_.output_mse = sum[1] / values;
  result_.relative_error = sum[0] > 0 ? sum[1] / sum[0] : 0;
  result_.rtn_output_mse = (rtn ? sum[1] : sum[2]) / values;
  return absl::OkStatus();
}

}  // namespace ptq
