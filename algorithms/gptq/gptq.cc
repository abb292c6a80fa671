#include "algorithms/gptq/gptq.h"

#include <ATen/ATen.h>

#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "algorithms/gptq/gptq_solver.h"
#include "algorithms/layer_check.h"
#include "algorithms/rtn/full_range.h"
#include "algorithms/rtn/rtn.h"
#include "algorithms/rtn/scale_search.h"
#include "common/status_macros.h"
#include "common/torch_status.h"

namespace ptq {
namespace {

// Quantizes the layers of one block. Layers that share a Hessian follow each other in the tensor
// table (q, k, v; gate, up), so the last factor is all that is worth keeping.
class BlockSolver {
 public:
  BlockSolver(at::ScalarType stored_dtype, const GptqOptions& options,
              const CancellationToken& cancel)
      : stored_dtype_(stored_dtype), options_(options), cancel_(cancel) {}

  absl::StatusOr<QuantizedLinear> Quantize(const Linear& linear, const LinearStatistics& statistics,
                                           const QuantizationScheme& scheme) {
    PTQ_RETURN_IF_ERROR(CheckLayer(linear, scheme));
    if (statistics.tokens == 0) {
      return QuantizedLinear{QuantizeRtn(linear.weight, stored_dtype_, scheme), kNoTokensReason};
    }
    PTQ_ASSIGN_OR_RETURN(const QParams qparams,
                         SearchScales(linear.weight, statistics.importance, scheme, cancel_));
    std::string reason;
    at::Tensor codes;
    PTQ_RETURN_IF_ERROR(Factorize(statistics.hessian));
    if (!factor_.has_value()) {
      reason = absl::StrCat("Hessian not positive definite after damping ",
                            options_.damping_ladder.empty() ? 0 : options_.damping_ladder.back(),
                            ", or not finite: opt-rtn");
    } else {
      PTQ_ASSIGN_OR_RETURN(auto solved, SolveGptq(linear.weight, qparams, scheme, *factor_,
                                                  options_.columns_per_tile, cancel_));
      if (solved.has_value()) {
        codes = *std::move(solved);
      } else {
        reason = "errors that are not finite while solving: opt-rtn";
      }
    }
    if (!codes.defined()) {
      codes = RoundToCodes(linear.weight, qparams, scheme);
    }
    return QuantizedLinear{
        MakeRecord(codes, qparams.scale, qparams.zero_point, stored_dtype_, scheme), reason};
  }

 private:
  // Sets `factor_` for `hessian`, unless it is the one that was factorised last.
  absl::Status Factorize(const at::Tensor& hessian) {
    if (factorized_.defined() && factorized_.const_data_ptr() == hessian.const_data_ptr()) {
      return absl::OkStatus();
    }
    factor_.reset();
    PTQ_ASSIGN_OR_RETURN(factor_, FactorizeHessian(hessian, options_.damping_ladder, cancel_));
    factorized_ = hessian;
    return absl::OkStatus();
  }

  const at::ScalarType stored_dtype_;
  const GptqOptions& options_;
  const CancellationToken& cancel_;
  at::Tensor factorized_;
  std::optional<GptqFactor> factor_;
};

}  // namespace

absl::StatusOr<QuantizedBlock> GptqBlockQuantizer::QuantizeBlock(
    const BlockQuantizationRequest& request) {
  const auto& linears = request.observed.block->linears();
  const auto& statistics = request.observed.statistics;
  PTQ_RETURN_IF_ERROR(CheckStatistics(request.observed, "gptq"));
  BlockSolver solver(stored_dtype_, options_, request.cancel);
  QuantizedBlock result;
  result.linears.resize(linears.size());
  for (size_t i = 0; i < linears.size(); ++i) {
    PTQ_RETURN_IF_ERROR(request.cancel.Check());
    if (request.schemes[i].has_value()) {
      PTQ_ASSIGN_OR_RETURN(result.linears[i], CatchTorchErrors(linears[i].module, [&] {
                             return solver.Quantize(linears[i], statistics[i], *request.schemes[i]);
                           }));
    }
    if (request.progress) {
      request.progress(static_cast<double>(i + 1) / static_cast<double>(linears.size()));
    }
  }
  return result;
}

}  // namespace ptq
