#include "algorithms/rtn/scale_search.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "algorithms/rtn/full_range.h"
#include "algorithms/rtn/opt_rtn.h"
#include "algorithms/rtn/rtn.h"
#include "tests/algorithms/observed_linear.h"
#include "tests/algorithms/tensor_literals.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::Matrix;
using testing::ObservedLinears;
using testing::Random;
using testing::StatusIs;
using testing::Values;

QuantizationScheme Scheme(int bits, int64_t group_size, bool symmetric = true) {
  return {.bits = bits, .group_size = group_size, .symmetric = symmetric};
}

// Weighted squared error of one group under a scale and an unsigned zero point, in float64.
double GroupError(const std::vector<double>& weight, const std::vector<double>& importance,
                  double scale, double zero_point, double lowest, double highest) {
  double sum = 0;
  for (size_t i = 0; i < weight.size(); ++i) {
    const double code = std::clamp(std::nearbyint(weight[i] / scale) + zero_point, lowest, highest);
    const double difference = scale * (code - zero_point) - weight[i];
    sum += importance[i] * difference * difference;
  }
  return sum;
}

double Float16(double value) { return static_cast<double>(static_cast<float>(at::Half(value))); }

// The least error over all candidates, written from the header's sentence.
double LeastError(const std::vector<double>& weight, const std::vector<double>& importance,
                  const QuantizationScheme& scheme) {
  const double low = std::min(0.0, *std::min_element(weight.begin(), weight.end()));
  const double high = std::max(0.0, *std::max_element(weight.begin(), weight.end()));
  const double half_range = std::pow(2, scheme.bits - 1);
  double least = std::numeric_limits<double>::infinity();
  const auto consider = [&](double scale, double zero_point, double lowest) {
    least = std::min(least, GroupError(weight, importance, scale, zero_point, lowest,
                                       lowest + 2 * half_range - 1));
  };
  if (scheme.symmetric) {
    const double extreme = high >= -low ? high : low;
    const int reach = scheme.bits == 2 ? 90 : 100;
    for (int k = -reach; k <= reach; ++k) {
      const double divisor = scheme.bits == 2 ? 2 + .01 * k : half_range * (1 + .0075 * k);
      consider(Float16(-extreme / divisor), 0, -half_range);
    }
    return least;
  }
  for (double a = .3; a < 1.16; a += .05) {
    for (double c = .3; c < 1.16; c += .05) {
      const double scale = Float16((c * high - a * low) / (2 * half_range - 1));
      consider(scale, std::clamp(std::nearbyint(-a * low / scale), 0.0, 2 * half_range - 1), 0);
    }
  }
  return least;
}

struct SearchCase {
  int bits;
  int64_t group_size;
  bool symmetric;
};

class SearchScalesTest : public ::testing::TestWithParam<SearchCase> {
 protected:
  // Normal weights with outliers, importance over four orders of magnitude; rows that do not fill
  // the last lanes, columns that do not fill the last tile.
  const at::Tensor weight_ = Random({21, 320}, 1).pow(3).mul_(0.02);
  const at::Tensor importance_ = Random({320}, 2).mul(2).exp();
  const QuantizationScheme scheme_ =
      Scheme(GetParam().bits, GetParam().group_size, GetParam().symmetric);

  // Error of every group under `qparams`, with the importance that SearchScales sees.
  std::vector<double> Errors(const QParams& qparams) const {
    std::vector<double> errors;
    ForEachGroup([&](const auto& weight, const auto& importance, size_t group) {
      const double scale = Values(qparams.scale)[group];
      const double zero_point =
          scheme_.symmetric ? 0 : Values(qparams.zero_point)[group] - scheme_.quant_min();
      const double lowest = scheme_.symmetric ? scheme_.quant_min() : 0;
      errors.push_back(GroupError(weight, importance, scale, zero_point, lowest,
                                  lowest + scheme_.quant_max() - scheme_.quant_min()));
    });
    return errors;
  }
  std::vector<double> LeastErrors() const {
    std::vector<double> errors;
    ForEachGroup([&](const auto& weight, const auto& importance, size_t) {
      errors.push_back(LeastError(weight, importance, scheme_));
    });
    return errors;
  }

 private:
  template <typename Visit>
  void ForEachGroup(const Visit& visit) const {
    const at::Tensor importance = importance_.to(at::kDouble) / importance_.mean() + 1e-4;
    const auto [b0, b1] = BlockSizeOf(scheme_, 21, 320);
    size_t index = 0;
    for (int64_t row = 0; row < 21; row += b0) {
      for (int64_t column = 0; column < 320; column += b1) {
        visit(Values(weight_.narrow(0, row, b0).narrow(1, column, b1)),
              Values(importance.narrow(0, column, b1).unsqueeze(0).expand({b0, b1})), index++);
      }
    }
  }
};

TEST_P(SearchScalesTest, FindsTheLeastWeightedErrorOfAllCandidates) {
  const QParams qparams = SearchScales(weight_, importance_, scheme_);
  EXPECT_EQ(qparams.scale.scalar_type(), at::kHalf);
  EXPECT_EQ(qparams.zero_point.scalar_type(), at::kInt);
  const std::vector<double> errors = Errors(qparams);
  const std::vector<double> least = LeastErrors();
  ASSERT_EQ(errors.size(), least.size());
  for (size_t group = 0; group < errors.size(); ++group) {
    // Float32 sums and factors may pick another candidate of practically the same error; candidates
    // here are typically 1e-2 apart.
    EXPECT_NEAR(errors[group] / least[group], 1, 2e-4) << group;
  }
}

TEST_P(SearchScalesTest, BeatsThePlainRule) {
  const std::vector<double> searched = Errors(SearchScales(weight_, importance_, scheme_));
  const std::vector<double> plain = Errors(ChooseFullRangeQParams(weight_, scheme_));
  double sum_searched = 0;
  double sum_plain = 0;
  for (size_t group = 0; group < plain.size(); ++group) {
    EXPECT_LE(searched[group], plain[group] * 1.0001) << group;
    sum_searched += searched[group];
    sum_plain += plain[group];
  }
  EXPECT_LT(sum_searched, sum_plain * (scheme_.bits == 8 ? 0.999 : 0.9));
}

TEST_P(SearchScalesTest, SameBitsForAnyThreadCount) {
  const QParams first = SearchScales(weight_, importance_, scheme_);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const QParams single = SearchScales(weight_, importance_, scheme_);
  at::set_num_threads(threads);
  EXPECT_TRUE(first.scale.equal(single.scale));
  EXPECT_TRUE(first.zero_point.equal(single.zero_point));
}

INSTANTIATE_TEST_SUITE_P(Schemes, SearchScalesTest,
                         ::testing::Values(SearchCase{2, 64, true}, SearchCase{3, 32, true},
                                           SearchCase{4, 64, true}, SearchCase{8, 64, true},
                                           SearchCase{4, -1, true}, SearchCase{4, 0, true},
                                           SearchCase{2, 64, false}, SearchCase{4, 64, false},
                                           SearchCase{8, 320, false}, SearchCase{3, 0, false}));

TEST(ScaleSearchTest, ExactWeightsKeepThePlainRule) {
  // Every value is a code times .25, so k = 0 has error 0 and comes first.
  const at::Tensor weight = Matrix(1, {-2, .25, .5, 1.75, 1, -1, 0, .75});
  const QParams qparams = SearchScales(weight, at::ones({8}), Scheme(4, 8));
  EXPECT_THAT(Values(qparams.scale), ElementsAre(0.25));
}

TEST(ScaleSearchTest, ZeroGroupsGetTheSmallestScale) {
  for (const bool symmetric : {true, false}) {
    const QParams qparams =
        SearchScales(at::zeros({3, 64}), at::ones({64}), Scheme(4, 32, symmetric));
    EXPECT_THAT(Values(qparams.scale), Each(1.0013580322265625e-05));
    EXPECT_THAT(Values(qparams.zero_point), Each(symmetric ? 0 : -8));
  }
}

TEST(ScaleSearchTest, UnusableImportanceCountsAsEven) {
  const at::Tensor weight = Random({8, 64}, 3);
  const at::Tensor even = SearchScales(weight, at::ones({64}), Scheme(3, 32)).scale;
  EXPECT_TRUE(SearchScales(weight, at::zeros({64}), Scheme(3, 32)).scale.equal(even));
  EXPECT_TRUE(SearchScales(weight, at::full({64}, std::nan("")), Scheme(3, 32)).scale.equal(even));
}

TEST(ScaleSearchTest, GroupsWithoutImportanceAreStillFitted) {
  const at::Tensor weight = Random({8, 64}, 4);
  at::Tensor importance = at::ones({64});
  importance.narrow(0, 32, 32).zero_();
  const QParams qparams = SearchScales(weight, importance, Scheme(4, 32));
  const at::Tensor even = SearchScales(weight, at::ones({64}), Scheme(4, 32)).scale;
  EXPECT_TRUE(qparams.scale.equal(even));
}

TEST(ScaleSearchTest, AsymmetricZeroPointsFitTheCodes) {
  // All of one sign at 8 bits, where -lo / s could round to 256.
  const at::Tensor weight = Random({64, 32}, 5).abs().neg().mul(1e-4);
  const QParams qparams = SearchScales(weight, at::ones({32}), Scheme(8, 32, false));
  EXPECT_LE(qparams.zero_point.max().item<int>(), 127);
  EXPECT_GE(qparams.zero_point.min().item<int>(), -128);
}

TEST(ScaleSearchTest, PiecesOfRowsJoinToTheWhole) {
  const at::Tensor weight = Random({260, 16384}, 7);  // more than one piece
  const at::Tensor importance = Random({16384}, 8).exp();
  const QParams whole = SearchScales(weight, importance, Scheme(2, 128));
  PTQ_ASSERT_OK_AND_ASSIGN(const QParams pieces,
                           SearchScales(weight, importance, Scheme(2, 128), CancellationToken()));
  EXPECT_TRUE(pieces.scale.equal(whole.scale));
  EXPECT_TRUE(pieces.zero_point.equal(whole.zero_point));
}

TEST(ScaleSearchTest, StopsWhenCancelled) {
  CancellationToken cancel;
  cancel.Cancel();
  EXPECT_THAT(SearchScales(Random({8, 64}, 6), at::ones({64}), Scheme(4, 32), cancel),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr("")));
}

TEST(OptRtnBlockQuantizerTest, LowersTheOutputErrorOfEveryLayer) {
  const at::Tensor inputs = Random({256, 128}, 7) * Random({128}, 8).exp();
  ObservedLinears linears;
  const at::Tensor weight = Random({32, 128}, 9);
  linears.Add("q_proj", weight, Scheme(3, 64), inputs);
  linears.Add("k_proj", weight, Scheme(3, 64));  // no token
  OptRtnBlockQuantizer quantizer(at::kFloat);
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock block, linears.Quantize(quantizer));
  const auto output_error = [&](const AffineQuantizedTensor& record) {
    return inputs.mm((Dequantize(record) - weight).t()).square().mean().item<double>();
  };
  const AffineQuantizedTensor rtn = QuantizeRtn(weight, at::kFloat, Scheme(3, 64));
  EXPECT_LT(output_error(block.linears[0]->weight), 0.9 * output_error(rtn));
  EXPECT_EQ(block.linears[0]->fallback_reason, "");
  EXPECT_THAT(block.linears[1]->fallback_reason, HasSubstr("no calibration token"));
  PTQ_ASSERT_OK_AND_ASSIGN(
      const AffineQuantizedTensor uniform,
      QuantizeOptRtn(weight, at::ones({128}), at::kFloat, Scheme(3, 64), linears.cancel));
  EXPECT_TRUE(block.linears[1]->weight.int_data.equal(uniform.int_data));
}

TEST(OptRtnBlockQuantizerTest, NeedsCalibrationData) {
  ObservedLinears linears;
  linears.Add("q_proj", Random({4, 64}, 10), Scheme(4, 32));
  linears.observed().statistics.clear();
  OptRtnBlockQuantizer quantizer(at::kFloat);
  EXPECT_THAT(linears.Quantize(quantizer),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("model.layers.0: opt-rtn needs calibration data")));
}

}  // namespace
}  // namespace ptq
