#include "algorithms/rtn/scale_search.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

#include "algorithms/rtn/full_range.h"
#include "algorithms/rtn/scale_search_kernel.h"
#include "common/status_macros.h"

namespace ptq {
namespace {

// Of 16 lanes: 16 KiB, half of an L1 cache.
constexpr int64_t kColumnsPerTile = 256;
// Weights between two looks at `cancel`: a tenth of a second.
constexpr int64_t kValuesPerPiece = int64_t{1} << 22;
// Weights that tensor operations take at once: 64 MiB a temporary in float32.
constexpr int64_t kValuesPerChunk = int64_t{1} << 24;

// How a candidate is made from a group's extremes: symmetric, s = -extreme / divisor; asymmetric,
// both ends of the range shrunk by factors.
struct CandidateRule {
  float divisor = 0;
  float low_factor = 0;
  float high_factor = 0;
};

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

at::Tensor NormalizeImportance(const at::Tensor& importance, const at::Tensor& weight) {
  TORCH_CHECK(importance.dim() == 1 && importance.size(0) == weight.size(1), "importance ",
              importance.sizes(), " does not fit the weight ", weight.sizes());
  const at::Tensor wide = importance.to(weight.device(), at::kDouble);
  const double mean = wide.mean().item<double>();
  if (!std::isfinite(mean) || mean <= 0) {
    return at::ones_like(wide, wide.options().dtype(at::kFloat));
  }
  return (wide / mean + 1e-4).to(at::kFloat).contiguous();
}

// ToStoredScale of one number.
float StoredScale(float scale) {
  const float smallest = c10::Half(1e-5f);
  const float half = c10::Half(std::clamp(scale, -65504.0f, 65504.0f));
  return half < 0 ? std::min(half, -smallest) : std::max(half, smallest);
}

struct ScaleAndZero {
  float scale;
  float zero_point;  // unsigned: 0..2^bits - 1; symmetric: 0
};

ScaleAndZero ApplyRule(const CandidateRule& rule, float low, float high,
                       const QuantizationScheme& scheme) {
  if (scheme.symmetric) {
    return {StoredScale(-(high >= -low ? high : low) / rule.divisor), 0};
  }
  const float levels = static_cast<float>(scheme.quant_max() - scheme.quant_min());
  low *= rule.low_factor;
  high *= rule.high_factor;
  const float scale = StoredScale((high - low) / levels);
  return {scale, std::clamp(std::nearbyint(-low / scale), 0.0f, levels)};
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
    const float lowest = static_cast<float>(scheme_.symmetric ? scheme_.quant_min() : 0);
    const float highest = lowest + static_cast<float>(scheme_.quant_max() - scheme_.quant_min());
    for (size_t c = 0; c < rules_.size(); ++c) {
      for (int r = 0; r < kSearchLanes; ++r) {
        const ScaleAndZero pair = ApplyRule(rules_[c], low.value[r], high.value[r], scheme_);
        candidates_[c].inverse_scale.value[r] = 1 / pair.scale;
        candidates_[c].lowest.value[r] = lowest - pair.zero_point;
        candidates_[c].highest.value[r] = highest - pair.zero_point;
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
  ScaleAndZero best = ApplyRule(rules[0], low, high, scheme);
  double least = std::numeric_limits<double>::infinity();
  for (size_t c = 0; c < rules.size(); ++c) {
    const ScaleAndZero pair = ApplyRule(rules[c], low, high, scheme);
    const double error = error_of(c) * static_cast<double>(pair.scale) * pair.scale;
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

// One candidate for all groups: scale float32 and unsigned zero point (undefined if symmetric), of
// the shape of `low` and `high`. Divisors are tensors, because CUDA divides by a number through its
// reciprocal.
QParams ApplyRuleToTensors(const CandidateRule& rule, const at::Tensor& low, const at::Tensor& high,
                           const QuantizationScheme& scheme) {
  const auto number = [&](float value) { return at::full({}, value, low.options()); };
  if (scheme.symmetric) {
    const at::Tensor extreme = at::where(high >= -low, high, low);
    return {ToStoredScale((-extreme).div_(number(rule.divisor))).to(at::kFloat), at::Tensor()};
  }
  const double levels = static_cast<double>(scheme.quant_max() - scheme.quant_min());
  const at::Tensor shrunk = low * number(rule.low_factor);
  const at::Tensor scale =
      ToStoredScale(
          (high * number(rule.high_factor) - shrunk).div_(number(static_cast<float>(levels))))
          .to(at::kFloat);
  return {scale, (-shrunk).div_(scale).round_().clamp_(0, levels)};
}

// `weight` [N, K] float32, `importance` normalised.
QParams SearchRowsByTensors(const at::Tensor& weight, const at::Tensor& importance,
                            const std::vector<CandidateRule>& rules,
                            const QuantizationScheme& scheme) {
  const auto [b0, b1] = BlockSizeOf(scheme, weight.size(0), weight.size(1));
  const at::Tensor blocked = weight.view({weight.size(0) / b0, b0, weight.size(1) / b1, b1});
  const at::Tensor weights = importance.view({1, 1, weight.size(1) / b1, b1});
  const at::Tensor low = blocked.amin({1, 3}, true).clamp_max_(0);
  const at::Tensor high = blocked.amax({1, 3}, true).clamp_min_(0);
  QParams best;
  at::Tensor least;
  for (const CandidateRule& rule : rules) {
    const QParams pair = ApplyRuleToTensors(rule, low, high, scheme);
    const at::Tensor scaled = blocked * pair.scale.reciprocal();
    at::Tensor codes = scaled.round();
    if (scheme.symmetric) {
      codes.clamp_(scheme.quant_min(), scheme.quant_max());
    } else {
      codes.add_(pair.zero_point)
          .clamp_(0, scheme.quant_max() - scheme.quant_min())
          .sub_(pair.zero_point);
    }
    const at::Tensor error =
        codes.sub_(scaled).square_().mul_(weights).sum({1, 3}, /*keepdim=*/true, at::kDouble) *
        pair.scale.to(at::kDouble).square();
    if (!least.defined()) {
      best = pair;
      least = error;
      continue;
    }
    const at::Tensor better = error < least;
    least = at::where(better, error, least);
    best.scale = at::where(better, pair.scale, best.scale);
    if (!scheme.symmetric) {
      best.zero_point = at::where(better, pair.zero_point, best.zero_point);
    }
  }
  const at::Tensor scale = best.scale.squeeze(3).squeeze(1).to(at::kHalf);
  return {scale, scheme.symmetric
                     ? at::zeros(scale.sizes(), scale.options().dtype(at::kInt))
                     : best.zero_point.squeeze(3).squeeze(1).to(at::kInt) + scheme.quant_min()};
}

// Runs `search` on pieces of at most about `values` weights, whole rows each, and joins the
// results.
template <typename Search>
absl::StatusOr<QParams> SearchInPieces(const at::Tensor& weight, const QuantizationScheme& scheme,
                                       int64_t values, const CancellationToken& cancel,
                                       const Search& search) {
  const int64_t rows = weight.size(0);
  const int64_t step = scheme.group_size == QuantizationScheme::kPerTensor
                           ? rows
                           : std::max<int64_t>(kSearchLanes, values / weight.size(1));
  std::vector<at::Tensor> scales;
  std::vector<at::Tensor> zero_points;
  for (int64_t row = 0; row < rows; row += step) {
    PTQ_RETURN_IF_ERROR(cancel.Check());
    const QParams part = search(weight.narrow(0, row, std::min(step, rows - row)));
    scales.push_back(part.scale);
    zero_points.push_back(part.zero_point);
  }
  return QParams{at::cat(scales), at::cat(zero_points)};
}

}  // namespace

QParams SearchScales(const at::Tensor& weight, const at::Tensor& importance,
                     const QuantizationScheme& scheme) {
  const c10::NoGradGuard no_grad;
  if (!weight.is_cpu()) {
    return SearchScalesByTensorOperations(weight, importance, scheme);
  }
  return CpuScaleSearch(weight, importance, scheme).Run();
}

absl::StatusOr<QParams> SearchScales(const at::Tensor& weight, const at::Tensor& importance,
                                     const QuantizationScheme& scheme,
                                     const CancellationToken& cancel) {
  return SearchInPieces(weight, scheme, kValuesPerPiece, cancel, [&](const at::Tensor& rows) {
    return SearchScales(rows, importance, scheme);
  });
}

QParams SearchScalesByTensorOperations(const at::Tensor& weight, const at::Tensor& importance,
                                       const QuantizationScheme& scheme) {
  const c10::NoGradGuard no_grad;
  const at::Tensor normalized = NormalizeImportance(importance, weight);
  const std::vector<CandidateRule> rules = MakeRules(scheme);
  const CancellationToken never;
  return *SearchInPieces(weight, scheme, kValuesPerChunk, never, [&](const at::Tensor& rows) {
    return SearchRowsByTensors(rows.to(at::kFloat).contiguous(), normalized, rules, scheme);
  });
}

}  // namespace ptq
