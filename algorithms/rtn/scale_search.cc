#include "algorithms/rtn/scale_search.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

#include "algorithms/auto_round/weight_tensor.h"
#include "algorithms/cuda/device_kernels.h"
#include "algorithms/rtn/scale_search_kernel.h"
#include "algorithms/rtn/scale_search_math.h"
#include "algorithms/rtn/scale_search_state.h"
#include "common/status_macros.h"

namespace ptq {
namespace {

using scale_search::ApplyRule;
using scale_search::Candidate;
using scale_search::CandidateRule;
using scale_search::kColumnsPerTile;
using scale_search::ScaleAndZero;

// Weights between two looks at `cancel`: a tenth of a second.
constexpr int64_t kValuesPerPiece = int64_t{1} << 22;

std::vector<CandidateRule> MakeRules(const QuantizationScheme& scheme) {
  std::vector<CandidateRule> rules;
  if (scheme.symmetric) {
    const double half_range = static_cast<double>(-scheme.quant_min());
    const double step = scheme.bits == 2 ? 0.01 : 0.0075 * half_range;
    const int reach = scheme.bits == 2 ? 90 : 100;
    const auto add = [&](int k) {
      rules.push_back({.divisor = static_cast<float>(half_range + step * k)});
    };
    add(0);
    for (int k = 1; k <= reach; ++k) {
      add(k);
      add(-k);
    }
    return rules;
  }
  constexpr int kSteps = 18;  // .30, .35, ..., 1.15
  constexpr int kPlain = 14;  // 1.00
  const auto factor = [](int step) { return static_cast<float>(0.05 * (step + 6)); };
  for (int distance = 0; distance <= 2 * kPlain; ++distance) {
    for (int low = 0; low < kSteps; ++low) {
      for (int high = 0; high < kSteps; ++high) {
        if (std::abs(low - kPlain) + std::abs(high - kPlain) == distance) {
          rules.push_back({.low_factor = factor(low), .high_factor = factor(high)});
        }
      }
    }
  }
  return rules;
}

// All candidates for one group a lane.
class LaneSearch {
 public:
  LaneSearch(const std::vector<CandidateRule>& rules, const QuantizationScheme& scheme)
      : rules_(rules),
        scheme_(scheme),
        candidates_(rules.size()),
        tile_errors_(rules.size()),
        errors_(rules.size()) {}

  // Starts groups whose values lie in [low, high] by lane, with low <= 0 <= high.
  void Begin(const SearchLanes& low, const SearchLanes& high) {
    for (size_t c = 0; c < rules_.size(); ++c) {
      for (int r = 0; r < kSearchLanes; ++r) {
        const Candidate candidate = scale_search::CandidateOf(
            ApplyRule(rules_[c], low.value[r], high.value[r], scheme_.bits, scheme_.symmetric),
            scheme_.bits, scheme_.symmetric);
        candidates_[c].inverse_scale.value[r] = candidate.inverse_scale;
        candidates_[c].lowest.value[r] = candidate.lowest;
        candidates_[c].highest.value[r] = candidate.highest;
        errors_[c][r] = 0;
      }
    }
  }

  void Add(const SearchLanes* weights, const float* importance, int64_t columns) {
    for (int64_t k = 0; k < columns; k += kColumnsPerTile) {
      AccumulateSearchErrors(weights + k, importance + k, std::min(kColumnsPerTile, columns - k),
                             candidates_.data(), static_cast<int64_t>(candidates_.size()),
                             tile_errors_.data());
      for (size_t c = 0; c < errors_.size(); ++c) {
        for (int r = 0; r < kSearchLanes; ++r) {
          errors_[c][r] += tile_errors_[c].value[r];
        }
      }
    }
  }

  // In units of the squared scale.
  double Error(size_t candidate, int lane) const { return errors_[candidate][lane]; }

 private:
  const std::vector<CandidateRule>& rules_;
  const QuantizationScheme& scheme_;
  std::vector<SearchCandidate> candidates_;
  std::vector<SearchLanes> tile_errors_;
  std::vector<std::array<double, kSearchLanes>> errors_;
};

// Columns [begin, end) of up to 16 rows from `row`, row r in lane r; lanes without a row are 0,
// which every candidate represents without error.
void LoadLanes(const float* weight, int64_t rows, int64_t columns, int64_t row, int64_t begin,
               int64_t end, std::vector<SearchLanes>& lanes) {
  lanes.assign(static_cast<size_t>(end - begin), SearchLanes{});
  const int64_t count = std::min<int64_t>(kSearchLanes, rows - row);
  for (int64_t r = 0; r < count; ++r) {
    const float* source = weight + (row + r) * columns;
    for (int64_t k = begin; k < end; ++k) {
      lanes[static_cast<size_t>(k - begin)].value[r] = source[k];
    }
  }
}

// First of the least errors.
template <typename ErrorOf>
ScaleAndZero ChooseBest(const std::vector<CandidateRule>& rules, float low, float high,
                        const QuantizationScheme& scheme, const ErrorOf& error_of) {
  ScaleAndZero best = ApplyRule(rules[0], low, high, scheme.bits, scheme.symmetric);
  double least = std::numeric_limits<double>::infinity();
  for (size_t c = 0; c < rules.size(); ++c) {
    const ScaleAndZero pair = ApplyRule(rules[c], low, high, scheme.bits, scheme.symmetric);
    const double error = scale_search::TotalError(error_of(c), pair.scale);
    if (error < least) {
      least = error;
      best = pair;
    }
  }
  return best;
}

class CpuScaleSearch {
 public:
  CpuScaleSearch(const at::Tensor& weight, const at::Tensor& importance,
                 const QuantizationScheme& scheme)
      : weight_(weight.to(at::kFloat).contiguous()),
        importance_(NormalizeImportance(importance, weight)),
        scheme_(scheme),
        rules_(MakeRules(scheme)),
        rows_(weight.size(0)),
        columns_(weight.size(1)),
        row_tiles_((rows_ + kSearchLanes - 1) / kSearchLanes) {}

  QParams Run() {
    const auto [b0, b1] = BlockSizeOf(scheme_, rows_, columns_);
    scale_ = at::empty({rows_ / b0, columns_ / b1}, weight_.options().dtype(at::kHalf));
    zero_point_ = at::zeros({rows_ / b0, columns_ / b1}, weight_.options().dtype(at::kInt));
    if (scheme_.group_size == QuantizationScheme::kPerTensor) {
      SearchTensor();
    } else {
      SearchGroups(b1);
    }
    return {scale_, zero_point_};
  }

 private:
  void SearchGroups(int64_t group_size) {
    const int64_t groups = columns_ / group_size;
    at::parallel_for(0, row_tiles_ * groups, 1, [&](int64_t begin, int64_t end) {
      LaneSearch search(rules_, scheme_);
      std::vector<SearchLanes> lanes;
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t row = unit / groups * kSearchLanes;
        const int64_t group = unit % groups;
        LoadLanes(weight_.const_data_ptr<float>(), rows_, columns_, row, group * group_size,
                  (group + 1) * group_size, lanes);
        SearchLanes low{};
        SearchLanes high{};
        for (const SearchLanes& column : lanes) {
          for (int r = 0; r < kSearchLanes; ++r) {
            low.value[r] = std::min(low.value[r], column.value[r]);
            high.value[r] = std::max(high.value[r], column.value[r]);
          }
        }
        search.Begin(low, high);
        search.Add(lanes.data(), importance_.const_data_ptr<float>() + group * group_size,
                   group_size);
        for (int r = 0; r < kSearchLanes && row + r < rows_; ++r) {
          Store((row + r) * groups + group,
                ChooseBest(rules_, low.value[r], high.value[r], scheme_,
                           [&](size_t c) { return search.Error(c, r); }));
        }
      }
    });
  }

  // One group of the whole weight: all lanes try the same candidates. Errors are kept by row tile
  // and added in order, so that threads do not change them.
  void SearchTensor() {
    const float low = std::min(0.0f, weight_.min().item<float>());
    const float high = std::max(0.0f, weight_.max().item<float>());
    SearchLanes lows;
    SearchLanes highs;
    std::fill_n(lows.value, kSearchLanes, low);
    std::fill_n(highs.value, kSearchLanes, high);
    std::vector<double> errors(static_cast<size_t>(row_tiles_) * rules_.size());
    at::parallel_for(0, row_tiles_, 1, [&](int64_t begin, int64_t end) {
      LaneSearch search(rules_, scheme_);
      std::vector<SearchLanes> lanes;
      for (int64_t tile = begin; tile < end; ++tile) {
        LoadLanes(weight_.const_data_ptr<float>(), rows_, columns_, tile * kSearchLanes, 0,
                  columns_, lanes);
        search.Begin(lows, highs);
        search.Add(lanes.data(), importance_.const_data_ptr<float>(), columns_);
        for (size_t c = 0; c < rules_.size(); ++c) {
          for (int r = 0; r < kSearchLanes; ++r) {
            errors[static_cast<size_t>(tile) * rules_.size() + c] += search.Error(c, r);
          }
        }
      }
    });
    Store(0, ChooseBest(rules_, low, high, scheme_, [&](size_t c) {
            double sum = 0;
            for (size_t at = c; at < errors.size(); at += rules_.size()) {
              sum += errors[at];
            }
            return sum;
          }));
  }

  void Store(int64_t index, const ScaleAndZero& pair) {
    scale_.mutable_data_ptr<c10::Half>()[index] = c10::Half(pair.scale);
    if (!scheme_.symmetric) {
      zero_point_.mutable_data_ptr<int32_t>()[index] =
          static_cast<int32_t>(pair.zero_point) + static_cast<int32_t>(scheme_.quant_min());
    }
  }

  const at::Tensor weight_;      // [N, K] float32
  const at::Tensor importance_;  // [K] float32
  const QuantizationScheme scheme_;
  const std::vector<CandidateRule> rules_;
  const int64_t rows_;
  const int64_t columns_;
  const int64_t row_tiles_;
  at::Tensor scale_;
  at::Tensor zero_point_;
};

// `weight` [N, K] on CUDA.
QParams SearchOnDevice(const at::Tensor& weight, const at::Tensor& importance,
                       const QuantizationScheme& scheme) {
  const bool in_place = weight.scalar_type() == at::kFloat ||
                        weight.scalar_type() == at::kBFloat16 || weight.scalar_type() == at::kHalf;
  const at::Tensor values = (in_place ? weight : weight.to(at::kFloat)).contiguous();
  const at::Tensor normalized = NormalizeImportance(importance, weight).to(weight.device());
  std::vector<CandidateRule> rules = MakeRules(scheme);
  const at::Tensor device_rules =
      at::from_blob(rules.data(), {static_cast<int64_t>(rules.size() * sizeof(CandidateRule))},
                    at::kByte)
          .to(weight.device());
  const auto [b0, b1] = BlockSizeOf(scheme, weight.size(0), weight.size(1));
  const at::TensorOptions options = at::device(weight.device());
  const QParams result{
      at::empty({weight.size(0) / b0, weight.size(1) / b1}, options.dtype(at::kHalf)),
      at::empty({weight.size(0) / b0, weight.size(1) / b1}, options.dtype(at::kInt))};

  ScaleSearchState state;
  static_cast<WeightLayout&>(state) = LayoutOf(values, values.scalar_type(), scheme);
  state.weight = values.const_data_ptr();
  state.importance = normalized.const_data_ptr<float>();
  state.rules = static_cast<const CandidateRule*>(device_rules.const_data_ptr());
  state.scale = static_cast<uint16_t*>(result.scale.mutable_data_ptr());
  state.zero_point = result.zero_point.mutable_data_ptr<int32_t>();
  state.rows = values.size(0);
  state.columns = values.size(1);
  state.rule_count = static_cast<int>(rules.size());
  at::Tensor extremes;
  at::Tensor tile_errors;
  if (scheme.group_size == QuantizationScheme::kPerTensor) {
    const auto [low, high] = at::aminmax(values);
    extremes = at::stack({low, high}).to(at::kFloat);
    tile_errors = at::empty({state.row_tiles(), state.rule_count}, options.dtype(at::kDouble));
    state.extremes = extremes.const_data_ptr<float>();
    state.tile_errors = tile_errors.mutable_data_ptr<double>();
  }
  CheckCuda(CudaKernels().search_scales(state, CudaKernels().current_stream()));
  return result;
}

}  // namespace

at::Tensor NormalizeImportance(const at::Tensor& importance, const at::Tensor& weight) {
  TORCH_CHECK(importance.dim() == 1 && importance.size(0) == weight.size(1), "importance ",
              importance.sizes(), " does not fit the weight ", weight.sizes());
  const at::Tensor wide = importance.to(at::kCPU, at::kDouble);
  const double mean = wide.mean().item<double>();
  if (!std::isfinite(mean) || mean <= 0) {
    return at::ones_like(wide, wide.options().dtype(at::kFloat));
  }
  return (wide / mean + 1e-4).to(at::kFloat).contiguous();
}

QParams SearchScales(const at::Tensor& weight, const at::Tensor& importance,
                     const QuantizationScheme& scheme) {
  const c10::NoGradGuard no_grad;
  if (weight.is_cuda()) {
    return SearchOnDevice(weight, importance, scheme);
  }
  return CpuScaleSearch(weight, importance, scheme).Run();
}

absl::StatusOr<QParams> SearchScales(const at::Tensor& weight, const at::Tensor& importance,
                                     const QuantizationScheme& scheme,
                                     const CancellationToken& cancel) {
  const int64_t rows = weight.size(0);
  const bool whole = weight.is_cuda() || scheme.group_size == QuantizationScheme::kPerTensor;
  const int64_t step =
      whole ? rows : std::max<int64_t>(kSearchLanes, kValuesPerPiece / weight.size(1));
  std::vector<at::Tensor> scales;
  std::vector<at::Tensor> zero_points;
  for (int64_t row = 0; row < rows; row += step) {
    PTQ_RETURN_IF_ERROR(cancel.Check());
    const QParams part =
        SearchScales(weight.narrow(0, row, std::min(step, rows - row)), importance, scheme);
    scales.push_back(part.scale);
    zero_points.push_back(part.zero_point);
  }
  return QParams{at::cat(scales), at::cat(zero_points)};
}

}  // namespace ptq
