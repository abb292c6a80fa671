#include "algorithms/gptq/gptq_solver.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/status_macros.h"

namespace ptq {
namespace {

// Columns of a factorisation handled between two looks at `cancel`: at K = 14336 on two cores a
// piece takes about a second, while products stay large enough to run at full speed.
constexpr int64_t kFactorColumns = 512;

// Cholesky factor of `matrix` [K, K] (symmetric, its lower triangle is read) in place: lower
// triangle L, L Lᵀ = matrix; what is above the diagonal is undefined. False if it is not positive
// definite.
//
//   L11            factor of the diagonal piece
//   L21 = A21 L11⁻ᵀ
//   A22 -= L21 L21ᵀ, one block column after the other, lower part only
absl::StatusOr<bool> FactorizeInPlace(at::Tensor& matrix, const CancellationToken& cancel) {
  const int64_t size = matrix.size(0);
  for (int64_t begin = 0; begin < size; begin += kFactorColumns) {
    PTQ_RETURN_IF_ERROR(cancel.Check());
    const int64_t end = std::min(begin + kFactorColumns, size);
    at::Tensor diagonal = matrix.slice(0, begin, end).slice(1, begin, end);
    const auto [lower, info] = at::linalg_cholesky_ex(diagonal);
    if (info.item<int>() != 0) {
      return false;
    }
    diagonal.copy_(lower);
    if (end == size) {
      break;
    }
    at::Tensor below = matrix.slice(0, end, size).slice(1, begin, end);
    below.copy_(at::linalg_solve_triangular(lower.mT(), below, /*upper=*/true, /*left=*/false));
    for (int64_t column = end; column < size; column += kFactorColumns) {
      PTQ_RETURN_IF_ERROR(cancel.Check());
      const int64_t column_end = std::min(column + kFactorColumns, size);
      matrix.slice(0, column, size)
          .slice(1, column, column_end)
          .addmm_(below.slice(0, column - end), below.slice(0, column - end, column_end - end).t(),
                  /*beta=*/1, /*alpha=*/-1);
    }
  }
  return true;
}

// Inverse of an upper triangular matrix, a block of columns at a time.
absl::StatusOr<at::Tensor> InvertUpper(const at::Tensor& upper, const CancellationToken& cancel) {
  const int64_t size = upper.size(0);
  at::Tensor inverse = at::zeros_like(upper);
  for (int64_t begin = 0; begin < size; begin += kFactorColumns) {
    PTQ_RETURN_IF_ERROR(cancel.Check());
    const int64_t end = std::min(begin + kFactorColumns, size);
    at::Tensor columns = inverse.slice(0, 0, end).slice(1, begin, end);
    columns.slice(0, begin, end).fill_diagonal_(1);
    columns.copy_(at::linalg_solve_triangular(upper.slice(0, 0, end).slice(1, 0, end), columns,
                                              /*upper=*/true));
  }
  return inverse;
}

}  // namespace

absl::StatusOr<std::optional<GptqFactor>> FactorizeHessian(const at::Tensor& hessian,
                                                           const std::vector<double>& ladder,
                                                           const CancellationToken& cancel) {
  const c10::NoGradGuard no_grad;
  const at::Tensor diagonal = hessian.diagonal().to(at::kDouble);
  const double mean = diagonal.mean().item<double>();
  if (!std::isfinite(mean) || mean <= 0 ||
      !std::isfinite(hessian.sum(at::kDouble).item<double>())) {
    return std::nullopt;
  }
  // Cholesky starts at the first row, the inverse's factor U is wanted from the last: with the
  // order reversed, H = R Rᵀ with R upper triangular, and U = R⁻¹.
  const at::Tensor rising =
      at::argsort(diagonal, /*stable=*/true, /*dim=*/0, /*descending=*/true).flip(0);
  for (const double damping : ladder) {
    PTQ_RETURN_IF_ERROR(cancel.Check());
    at::Tensor matrix = hessian.index_select(0, rising).index_select(1, rising).to(at::kDouble);
    matrix.diagonal().add_(damping * mean);
    PTQ_ASSIGN_OR_RETURN(const bool positive_definite, FactorizeInPlace(matrix, cancel));
    if (!positive_definite) {
      continue;
    }
    PTQ_ASSIGN_OR_RETURN(at::Tensor inverse, InvertUpper(matrix.tril_().flip({0, 1}), cancel));
    inverse.div_(inverse.diagonal().clone().unsqueeze(1));
    at::Tensor feedback = inverse.to(at::kFloat);
    if (at::isfinite(feedback.sum()).item<bool>()) {
      return GptqFactor{rising.flip(0), std::move(feedback), damping};
    }
  }
  return std::nullopt;
}

absl::StatusOr<std::optional<at::Tensor>> SolveGptq(
    const at::Tensor& weight, const QParams& qparams, const QuantizationScheme& scheme,
    const GptqFactor& factor, int64_t columns_per_tile, const CancellationToken& cancel) {
  const c10::NoGradGuard no_grad;
  const int64_t rows = weight.size(0);
  const int64_t columns = weight.size(1);
  // Everything is kept transposed, [K, N], and by position: a column is then contiguous.
  at::Tensor rest = weight.t().index_select(0, factor.order).to(at::kFloat).contiguous();
  at::Tensor codes = at::empty({columns, rows}, rest.options().dtype(at::kChar));
  const at::Tensor group_scale = qparams.scale.to(at::kFloat).t();  // [G, N], or [1, 1]
  const at::Tensor group_zero = qparams.zero_point.to(at::kFloat).t();
  const at::Tensor group =
      at::div(factor.order, BlockSizeOf(scheme, rows, columns)[1], /*rounding_mode=*/"floor");

  for (int64_t begin = 0; begin < columns; begin += columns_per_tile) {
    PTQ_RETURN_IF_ERROR(cancel.Check());
    const int64_t end = std::min(begin + columns_per_tile, columns);
    const at::Tensor groups = group.slice(0, begin, end);
    const at::Tensor scale = group_scale.index_select(0, groups);
    const at::Tensor zero_point = group_zero.index_select(0, groups);
    const at::Tensor feedback = factor.feedback.slice(0, begin, end);
    at::Tensor tile = rest.slice(0, begin, end);
    at::Tensor errors = at::empty_like(tile);
    for (int64_t i = 0; i < end - begin; ++i) {
      at::Tensor column = tile.select(0, i);
      at::Tensor code = column.div(scale.select(0, i)).round_();
      if (!scheme.symmetric) {
        code.add_(zero_point.select(0, i));
      }
      code.clamp_(scheme.quant_min(), scheme.quant_max());
      codes.select(0, begin + i).copy_(code);
      if (!scheme.symmetric) {
        code.sub_(zero_point.select(0, i));
      }
      at::Tensor error = errors.select(0, i);
      at::sub_out(error, column, code.mul_(scale.select(0, i)));
      if (begin + i + 1 < end) {
        tile.slice(0, i + 1).addr_(feedback.select(0, i).slice(0, begin + i + 1, end), error,
                                   /*beta=*/1, /*alpha=*/-1);
      }
    }
    if (!at::isfinite(errors.sum()).item<bool>()) {
      return std::nullopt;
    }
    if (end < columns) {
      rest.slice(0, end).addmm_(feedback.slice(1, end).t(), errors, /*beta=*/1, /*alpha=*/-1);
    }
  }
  at::Tensor result = at::empty({rows, columns}, codes.options());
  result.index_copy_(1, factor.order, codes.t());
  return result;
}

}  // namespace ptq
