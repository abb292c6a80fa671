#include "algorithms/vocabulary_quantizer.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "algorithms/affine/record_rows.h"
#include "algorithms/gptq/gptq.h"
#include "algorithms/gptq/gptq_solver.h"
#include "algorithms/rtn/opt_rtn.h"
#include "algorithms/rtn/rtn.h"
#include "algorithms/rtn/scale_search.h"
#include "common/status_macros.h"
#include "common/torch_status.h"

namespace ptq {
namespace {

// 64 MiB in float32.
constexpr int64_t kPieceElements = int64_t{1} << 24;

class RowQuantizer {
 public:
  explicit RowQuantizer(const VocabularyRequest& request) : request_(request) {}

  absl::Status Prepare() {
    if (request_.method != RowMethod::kGptq) return absl::OkStatus();
    if (request_.scheme.k_quant != KQuant::kNone) {
      fallback_reason_ = "a K-quant outside of the blocks: opt-rtn";
      return absl::OkStatus();
    }
    const GptqOptions options;
    PTQ_ASSIGN_OR_RETURN(factor_, FactorizeHessian(request_.statistics.hessian,
                                                   options.damping_ladder, request_.cancel));
    if (!factor_) {
      fallback_reason_ = "Hessian not positive definite after damping, or not finite: opt-rtn";
    }
    return absl::OkStatus();
  }

  absl::StatusOr<AffineQuantizedTensor> Quantize(const at::Tensor& weight) {
    const QuantizationScheme& scheme = request_.scheme;
    if (request_.method == RowMethod::kRtn) {
      return QuantizeRtn(weight, request_.stored_dtype, scheme);
    }
    const at::Tensor wide = weight.to(at::kFloat);
    const at::Tensor& importance = request_.statistics.importance;
    if (factor_) {
      PTQ_ASSIGN_OR_RETURN(const QParams qparams,
                           SearchScales(wide, importance, scheme, request_.cancel));
      PTQ_ASSIGN_OR_RETURN(const auto codes,
                           SolveGptq(wide, qparams, scheme, *factor_,
                                     GptqOptions().columns_per_tile, request_.cancel));
      if (codes) {
        return MakeRecord(*codes, qparams.scale, qparams.zero_point, request_.stored_dtype, scheme);
      }
      fallback_reason_ = "errors that are not finite while solving some rows: opt-rtn";
    }
    return QuantizeOptRtn(wide, importance, request_.stored_dtype, scheme, request_.cancel);
  }

  std::optional<double> damping() const {
    return factor_ ? std::optional<double>(factor_->damping) : std::nullopt;
  }
  const std::string& fallback_reason() const { return fallback_reason_; }

 private:
  const VocabularyRequest& request_;
  std::optional<GptqFactor> factor_;
  std::string fallback_reason_;
};

// Makes room in `whole` for all rows, like those of `piece`.
void Allocate(const AffineQuantizedTensor& piece, int64_t rows, AffineQuantizedTensor* whole) {
  *whole = piece;
  for (at::Tensor* part : TensorsOf(*whole)) {
    *part = at::empty({rows, part->size(1)}, part->options().device(at::kCPU));
  }
}

}  // namespace

absl::Status ForPiecesOfRows(
    int64_t rows, int64_t columns,
    const std::function<absl::Status(int64_t begin, int64_t count)>& body) {
  const int64_t step = std::max<int64_t>(1, kPieceElements / columns);
  for (int64_t begin = 0; begin < rows; begin += step) {
    PTQ_RETURN_IF_ERROR(body(begin, std::min(step, rows - begin)));
  }
  return absl::OkStatus();
}

absl::StatusOr<QuantizedLinear> QuantizeVocabulary(const VocabularyRequest& request) {
  return CatchTorchErrors(request.module, [&]() -> absl::StatusOr<QuantizedLinear> {
    const c10::NoGradGuard no_grad;
    if (request.scheme.group_size == QuantizationScheme::kPerTensor) {
      return absl::InvalidArgumentError(request.module + ": one scale for all rows");
    }
    RowQuantizer quantizer(request);
    PTQ_RETURN_IF_ERROR(quantizer.Prepare());
    QuantizedLinear result;
    const absl::Status quantized = ForPiecesOfRows(
        request.rows, request.columns, [&](int64_t begin, int64_t count) -> absl::Status {
          PTQ_RETURN_IF_ERROR(request.cancel.Check());
          PTQ_ASSIGN_OR_RETURN(const at::Tensor weight, request.read(begin, count));
          if (!at::isfinite(weight).all().item<bool>()) {
            return absl::InvalidArgumentError(absl::StrCat(request.module, ": rows ", begin, " to ",
                                                           begin + count,
                                                           " hold NaN or infinite values"));
          }
          PTQ_ASSIGN_OR_RETURN(AffineQuantizedTensor piece, quantizer.Quantize(weight));
          if (begin == 0) Allocate(piece, request.rows, &result.weight);
          AffineQuantizedTensor rows = RecordRows(result.weight, begin, count);
          const std::vector<at::Tensor*> targets = TensorsOf(rows);
          const std::vector<at::Tensor*> parts = TensorsOf(piece);
          for (size_t i = 0; i < parts.size(); ++i) targets[i]->copy_(*parts[i]);
          if (request.progress) {
            request.progress(static_cast<double>(begin + count) /
                             static_cast<double>(request.rows));
          }
          return absl::OkStatus();
        });
    PTQ_RETURN_IF_ERROR(quantized);
    result.damping = quantizer.damping();
    result.fallback_reason = quantizer.fallback_reason();
    return result;
  });
}

}  // namespace ptq
