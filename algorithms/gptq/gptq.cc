#include "algorithms/gptq/gptq.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "algorithms/gptq/gptq_solver.h"
#include "algorithms/layer_check.h"
#include "algorithms/rtn/full_range.h"
#include "algorithms/rtn/opt_rtn.h"
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
              const BlockQuantizationRequest& request)
      : stored_dtype_(stored_dtype),
        options_(options),
        linears_(request.observed.block->linears()),
        statistics_(request.observed.statistics),
        schemes_(request.schemes),
        cancel_(request.cancel) {}

  // Where the layers end that are solved as one weight with layer `begin`: those with its Hessian
  // and scheme. A GPU has one launch for all of them; a CPU gains nothing, and takes one at a time.
  size_t EndOfRun(size_t begin) const {
    size_t end = begin + 1;
    const at::Tensor& hessian = statistics_[begin].hessian;
    if (!schemes_[begin].has_value() || !linears_[begin].weight.is_cuda()) return end;
    if (schemes_[begin]->k_quant != KQuant::kNone) return end;
    while (end < linears_.size() && statistics_[end].hessian.is_same(hessian) &&
           schemes_[end] == schemes_[begin]) {
      ++end;
    }
    return end;
  }

  // The layers of one run, all of which have a scheme.
  absl::StatusOr<std::vector<QuantizedLinear>> Quantize(size_t begin, size_t end) {
    const QuantizationScheme& scheme = *schemes_[begin];
    const LinearStatistics& statistics = statistics_[begin];
    for (size_t i = begin; i < end; ++i) {
      PTQ_RETURN_IF_ERROR(CheckLayer(linears_[i], scheme));
    }
    std::vector<QuantizedLinear> result;
    if (statistics.tokens == 0) {
      for (size_t i = begin; i < end; ++i) {
        PTQ_ASSIGN_OR_RETURN(result.emplace_back(),
                             QuantizeUnreached(linears_[i].weight, stored_dtype_, scheme, cancel_));
      }
      return result;
    }
    if (scheme.k_quant != KQuant::kNone) {
      PTQ_ASSIGN_OR_RETURN(result.emplace_back(), QuantizeOnGrid(begin));
      return result;
    }
    std::vector<QParams> qparams;
    for (size_t i = begin; i < end; ++i) {
      PTQ_ASSIGN_OR_RETURN(
          qparams.emplace_back(),
          SearchScales(linears_[i].weight, statistics.importance, scheme, cancel_));
    }
    PTQ_ASSIGN_OR_RETURN(const Solution solution, Solve(begin, qparams));
    for (size_t i = 0; i < qparams.size(); ++i) {
      const at::Tensor codes = solution.codes[i].defined()
                                   ? solution.codes[i]
                                   : RoundToCodes(linears_[begin + i].weight, qparams[i], scheme);
      QuantizedLinear& layer = result.emplace_back();
      layer.weight =
          MakeRecord(codes, qparams[i].scale, qparams[i].zero_point, stored_dtype_, scheme);
      if (solution.codes[i].defined()) {
        layer.damping = factor_->damping;
      } else {
        layer.fallback_reason = solution.reason;
      }
    }
    return result;
  }

 private:
  struct Solution {
    std::vector<at::Tensor> codes;  // [N, K] int8 by layer of the run; undefined: not solved,
    std::string reason;             // for this reason
  };

  static constexpr char kNotFinite[] = "errors that are not finite while solving: opt-rtn";
  std::string NotFactorized() const {
    return absl::StrCat("Hessian not positive definite after damping ",
                        options_.damping_ladder.empty() ? 0 : options_.damping_ladder.back(),
                        ", or not finite: opt-rtn");
  }

  // A K-quant: opt-rtn's record, its codes replaced by those that the solver finds on its grid.
  absl::StatusOr<QuantizedLinear> QuantizeOnGrid(size_t index) {
    const QuantizationScheme& scheme = *schemes_[index];
    const at::Tensor& weight = linears_[index].weight;
    QuantizedLinear result;
    PTQ_ASSIGN_OR_RETURN(result.weight, QuantizeOptRtn(weight, statistics_[index].importance,
                                                       stored_dtype_, scheme, cancel_));
    PTQ_RETURN_IF_ERROR(Factorize(statistics_[index].hessian));
    if (!factor_.has_value()) {
      result.fallback_reason = NotFactorized();
      return result;
    }
    PTQ_ASSIGN_OR_RETURN(const auto codes,
                         SolveGptqOnGrid(weight, GroupValuesOf(result.weight.super_blocks), scheme,
                                         *factor_, options_.columns_per_tile, cancel_));
    if (codes.has_value()) {
      result.weight.int_data = *codes;
      result.damping = factor_->damping;
    } else {
      result.fallback_reason = kNotFinite;
    }
    return result;
  }

  absl::StatusOr<Solution> Solve(size_t begin, const std::vector<QParams>& qparams) {
    Solution solution;
    solution.codes.resize(qparams.size());
    PTQ_RETURN_IF_ERROR(Factorize(statistics_[begin].hessian));
    if (!factor_.has_value()) {
      solution.reason = NotFactorized();
      return solution;
    }
    if (qparams.size() > 1) {
      PTQ_ASSIGN_OR_RETURN(solution.codes, SolveAsOne(begin, qparams));
      if (solution.codes[0].defined()) return solution;
    }
    solution.reason = kNotFinite;
    for (size_t i = 0; i < qparams.size(); ++i) {
      PTQ_ASSIGN_OR_RETURN(const auto codes,
                           SolveGptq(linears_[begin + i].weight, qparams[i], *schemes_[begin],
                                     *factor_, options_.columns_per_tile, cancel_));
      if (codes.has_value()) solution.codes[i] = *codes;
    }
    return solution;
  }

  // Codes by layer, all of them undefined if one layer's errors are not finite.
  absl::StatusOr<std::vector<at::Tensor>> SolveAsOne(size_t begin,
                                                     const std::vector<QParams>& qparams) {
    std::vector<int64_t> rows;
    std::vector<at::Tensor> weights;
    std::vector<at::Tensor> scales;
    std::vector<at::Tensor> zero_points;
    for (size_t i = 0; i < qparams.size(); ++i) {
      const at::Tensor& weight = linears_[begin + i].weight;
      rows.push_back(weight.size(0));
      weights.push_back(weight);
      scales.push_back(qparams[i].scale.expand({weight.size(0), -1}));
      zero_points.push_back(qparams[i].zero_point.expand({weight.size(0), -1}));
    }
    PTQ_ASSIGN_OR_RETURN(const auto codes,
                         SolveGptq(at::cat(weights), {at::cat(scales), at::cat(zero_points)},
                                   *schemes_[begin], *factor_, options_.columns_per_tile, cancel_));
    if (!codes.has_value()) return std::vector<at::Tensor>(qparams.size());
    return at::split_with_sizes(*codes, rows);
  }

  // Sets `factor_` for `hessian`, unless it is the one that was factorised last.
  absl::Status Factorize(const at::Tensor& hessian) {
    if (factorized_.defined() && factorized_.is_same(hessian)) {
      return absl::OkStatus();
    }
    factor_.reset();
    PTQ_ASSIGN_OR_RETURN(factor_, FactorizeHessian(hessian, options_.damping_ladder, cancel_));
    factorized_ = hessian;
    return absl::OkStatus();
  }

  const at::ScalarType stored_dtype_;
  const GptqOptions& options_;
  const std::vector<Linear>& linears_;
  const std::vector<LinearStatistics>& statistics_;
  const std::vector<std::optional<QuantizationScheme>>& schemes_;
  const CancellationToken& cancel_;
  at::Tensor factorized_;
  std::optional<GptqFactor> factor_;
};

}  // namespace

absl::StatusOr<QuantizedBlock> GptqBlockQuantizer::QuantizeBlock(
    const BlockQuantizationRequest& request) {
  const auto& linears = request.observed.block->linears();
  PTQ_RETURN_IF_ERROR(CheckStatistics(request.observed, "gptq"));
  BlockSolver solver(stored_dtype_, options_, request);
  QuantizedBlock result;
  result.linears.resize(linears.size());
  size_t end = 0;
  for (size_t begin = 0; begin < linears.size(); begin = end) {
    PTQ_RETURN_IF_ERROR(request.cancel.Check());
    end = solver.EndOfRun(begin);
    if (request.schemes[begin].has_value()) {
      PTQ_ASSIGN_OR_RETURN(
          std::vector<QuantizedLinear> layers,
          CatchTorchErrors(linears[begin].module, [&] { return solver.Quantize(begin, end); }));
      std::move(layers.begin(), layers.end(),
                result.linears.begin() + static_cast<std::ptrdiff_t>(begin));
    }
    if (request.progress) {
      request.progress(static_cast<double>(end) / static_cast<double>(linears.size()));
    }
  }
  return result;
}

}  // namespace ptq
