#include "algorithms/gptq/gptq_solver.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "algorithms/cuda/device_kernels.h"
#include "algorithms/gptq/gptq_tile_state.h"
#include "common/status_macros.h"

namespace ptq {
namespace {

// Columns of a factorisation handled between two looks at `cancel`: at K = 14336 on two cores a
// piece takes about a second, while products stay large enough to run at full speed. A GPU wants
// larger ones.
constexpr int64_t kFactorColumns = 512;
constexpr int64_t kDeviceFactorColumns = 4096;

int64_t FactorColumns(const at::Tensor& matrix) {
  return matrix.is_cuda() ? kDeviceFactorColumns : kFactorColumns;
}

// Cholesky factor of `matrix` [K, K] (symmetric, its lower triangle is read) in place: lower
// triangle L, L Lᵀ = matrix; what is above the diagonal is undefined. False if it is not positive
// definite.
//
//   L11            factor of the diagonal piece
//   L21 = A21 L11⁻ᵀ
//   A22 -= L21 L21ᵀ, one block column after the other, lower part only
absl::StatusOr<bool> FactorizeInPlace(at::Tensor& matrix, const CancellationToken& cancel) {
  const int64_t size = matrix.size(0);
  const int64_t step = FactorColumns(matrix);
  for (int64_t begin = 0; begin < size; begin += step) {
    PTQ_RETURN_IF_ERROR(cancel.Check());
    const int64_t end = std::min(begin + step, size);
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
    for (int64_t column = end; column < size; column += step) {
      PTQ_RETURN_IF_ERROR(cancel.Check());
      const int64_t column_end = std::min(column + step, size);
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
  const int64_t step = FactorColumns(upper);
  at::Tensor inverse = at::zeros_like(upper);
  for (int64_t begin = 0; begin < size; begin += step) {
    PTQ_RETURN_IF_ERROR(cancel.Check());
    const int64_t end = std::min(begin + step, size);
    at::Tensor columns = inverse.slice(0, 0, end).slice(1, begin, end);
    columns.slice(0, begin, end).fill_diagonal_(1);
    columns.copy_(at::linalg_solve_triangular(upper.slice(0, 0, end).slice(1, 0, end), columns,
                                              /*upper=*/true));
  }
  return inverse;
}

// By group of columns, [G, N] float32, G = 1 where a row has one scale.
struct GroupScales {
  at::Tensor scale;
  at::Tensor zero_point;
};

GroupScales ScalesByGroup(const QParams& qparams, const QuantizationScheme& scheme, int64_t rows) {
  const auto by_group = [&](const at::Tensor& values) {
    return values.to(at::kFloat).t().expand({-1, rows}).contiguous();
  };
  return {by_group(qparams.scale), scheme.symmetric ? at::Tensor() : by_group(qparams.zero_point)};
}

// Neighbouring columns by position, B of them.
struct Tile {
  at::Tensor weight;    // [B, N] float32: what earlier tiles left of it; lost
  at::Tensor feedback;  // [B, B] float32
  at::Tensor groups;    // [B] int64
  at::Tensor codes;     // [B, N] int8, written
  at::Tensor errors;    // [B, N] float32, written
};

// False if an error is not finite.
bool SolveTileOnHost(const Tile& tile, const GroupScales& scales,
                     const QuantizationScheme& scheme) {
  const at::Tensor scale = scales.scale.index_select(0, tile.groups);
  at::Tensor zero_point;
  if (!scheme.symmetric) zero_point = scales.zero_point.index_select(0, tile.groups);
  const int64_t columns = tile.weight.size(0);
  for (int64_t i = 0; i < columns; ++i) {
    const at::Tensor column = tile.weight.select(0, i);
    at::Tensor code = column.div(scale.select(0, i)).round_();
    if (!scheme.symmetric) {
      code.add_(zero_point.select(0, i));
    }
    code.clamp_(scheme.quant_min(), scheme.quant_max());
    tile.codes.select(0, i).copy_(code);
    if (!scheme.symmetric) {
      code.sub_(zero_point.select(0, i));
    }
    at::Tensor error = tile.errors.select(0, i);
    at::sub_out(error, column, code.mul_(scale.select(0, i)));
    if (i + 1 < columns) {
      tile.weight.slice(0, i + 1).addr_(tile.feedback.select(0, i).slice(0, i + 1), error,
                                        /*beta=*/1, /*alpha=*/-1);
    }
  }
  return at::isfinite(tile.errors.sum()).item<bool>();
}

// Sets `failed` [1] int32 to 1 if an error is not finite; does not wait for the device.
void SolveTileOnDevice(const Tile& tile, const GroupScales& scales,
                       const QuantizationScheme& scheme, const at::Tensor& failed) {
  TORCH_CHECK(tile.feedback.stride(1) == 1, "the rows of the feedback must be contiguous");
  GptqTileState state;
  state.weight = tile.weight.const_data_ptr<float>();
  state.feedback = tile.feedback.const_data_ptr<float>();
  state.feedback_stride = tile.feedback.stride(0);
  state.groups = tile.groups.const_data_ptr<int64_t>();
  state.scale = scales.scale.const_data_ptr<float>();
  if (!scheme.symmetric) state.zero_point = scales.zero_point.const_data_ptr<float>();
  state.codes = tile.codes.mutable_data_ptr<int8_t>();
  state.errors = tile.errors.mutable_data_ptr<float>();
  state.failed = failed.mutable_data_ptr<int32_t>();
  state.rows = tile.weight.size(1);
  state.columns = static_cast<int>(tile.weight.size(0));
  state.quant_min = static_cast<int>(scheme.quant_min());
  state.quant_max = static_cast<int>(scheme.quant_max());
  CheckCuda(CudaKernels().solve_gptq_tile(state, CudaKernels().current_stream()));
}

// A K-quant's grid by group of columns, [G, N] float32: value = scale * u - minimum, u the unsigned
// code.
struct GridByGroup {
  at::Tensor scale;
  at::Tensor inverse;  // 0 where the scale is
  at::Tensor minimum;
};

GridByGroup ByGroup(const GroupValues& grid, const QuantizationScheme& scheme) {
  const auto by_group = [](const at::Tensor& values) { return values.t().contiguous(); };
  GridByGroup result;
  result.scale = by_group(grid.scale);
  result.inverse =
      at::where(result.scale == 0, at::zeros_like(result.scale), at::reciprocal(result.scale));
  // Of symmetric types exact: a power of two times the scale.
  result.minimum = grid.minimum.defined() ? by_group(grid.minimum)
                                          : result.scale * static_cast<double>(-scheme.quant_min());
  return result;
}

// False if an error is not finite.
bool SolveTileOnGrid(const Tile& tile, const GridByGroup& grid, const QuantizationScheme& scheme) {
  const auto of_tile = [&tile](const at::Tensor& values) {
    return values.index_select(0, tile.groups);
  };
  const at::Tensor scale = of_tile(grid.scale);
  const at::Tensor inverse = of_tile(grid.inverse);
  const at::Tensor minimum = of_tile(grid.minimum);
  const auto levels = static_cast<double>(scheme.quant_max() - scheme.quant_min());
  const int64_t columns = tile.weight.size(0);
  for (int64_t i = 0; i < columns; ++i) {
    const at::Tensor column = tile.weight.select(0, i);
    at::Tensor code = column.add(minimum.select(0, i)).mul_(inverse.select(0, i));
    code.round_().clamp_(0, levels);
    tile.codes.select(0, i).copy_(code.add(static_cast<double>(scheme.quant_min())));
    at::Tensor error = tile.errors.select(0, i);
    at::sub_out(error, column, code.mul_(scale.select(0, i)).sub_(minimum.select(0, i)));
    if (i + 1 < columns) {
      tile.weight.slice(0, i + 1).addr_(tile.feedback.select(0, i).slice(0, i + 1), error,
                                        /*beta=*/1, /*alpha=*/-1);
    }
  }
  return at::isfinite(tile.errors.sum()).item<bool>();
}

// Both SolveGptq: `solve` rounds the columns of one tile, and is false where an error is not
// finite.
absl::StatusOr<std::optional<at::Tensor>> SolveByTiles(
    const at::Tensor& weight, const QuantizationScheme& scheme, const GptqFactor& factor,
    int64_t columns_per_tile, const CancellationToken& cancel,
    const std::function<bool(const Tile&)>& solve) {
  const int64_t rows = weight.size(0);
  const int64_t columns = weight.size(1);
  // Everything is kept transposed, [K, N], and by position: a column is then contiguous.
  at::Tensor rest = weight.t().index_select(0, factor.order).to(at::kFloat).contiguous();
  at::Tensor codes = at::empty({columns, rows}, rest.options().dtype(at::kChar));
  const at::Tensor group =
      at::div(factor.order, BlockSizeOf(scheme, rows, columns)[1], /*rounding_mode=*/"floor");
  for (int64_t begin = 0; begin < columns; begin += columns_per_tile) {
    PTQ_RETURN_IF_ERROR(cancel.Check());
    const int64_t end = std::min(begin + columns_per_tile, columns);
    const at::Tensor feedback = factor.feedback.slice(0, begin, end);
    const Tile tile{.weight = rest.slice(0, begin, end),
                    .feedback = feedback.slice(1, begin, end),
                    .groups = group.slice(0, begin, end),
                    .codes = codes.slice(0, begin, end),
                    .errors = at::empty({end - begin, rows}, rest.options())};
    if (!solve(tile)) return std::nullopt;
    if (end < columns) {
      rest.slice(0, end).addmm_(feedback.slice(1, end).t(), tile.errors, /*beta=*/1, /*alpha=*/-1);
    }
  }
  const at::Tensor position = at::argsort(factor.order);
  return codes.index_select(0, position).t().contiguous();
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
    const at::Tensor upper = matrix.tril_().flip({0, 1});
    matrix.reset();
    PTQ_ASSIGN_OR_RETURN(at::Tensor inverse, InvertUpper(upper, cancel));
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
  at::NoTF32Guard no_tf32;
  const bool on_device = weight.is_cuda();
  if (on_device) columns_per_tile = std::min<int64_t>(columns_per_tile, GptqTileState::kMaxColumns);
  const GroupScales scales = ScalesByGroup(qparams, scheme, weight.size(0));
  const at::Tensor failed = at::zeros({1}, weight.options().dtype(at::kInt));
  PTQ_ASSIGN_OR_RETURN(auto codes, SolveByTiles(weight, scheme, factor, columns_per_tile, cancel,
                                                [&](const Tile& tile) {
                                                  if (!on_device)
                                                    return SolveTileOnHost(tile, scales, scheme);
                                                  SolveTileOnDevice(tile, scales, scheme, failed);
                                                  return true;
                                                }));
  // Waits for the device once.
  if (on_device && failed.item<int>() != 0) codes.reset();
  return codes;
}

absl::StatusOr<std::optional<at::Tensor>> SolveGptqOnGrid(
    const at::Tensor& weight, const GroupValues& grid, const QuantizationScheme& scheme,
    const GptqFactor& factor, int64_t columns_per_tile, const CancellationToken& cancel) {
  const c10::NoGradGuard no_grad;
  at::NoTF32Guard no_tf32;
  const GridByGroup by_group = ByGroup(grid, scheme);
  return SolveByTiles(weight, scheme, factor, columns_per_tile, cancel,
                      [&](const Tile& tile) { return SolveTileOnGrid(tile, by_group, scheme); });
}

}  // namespace ptq
