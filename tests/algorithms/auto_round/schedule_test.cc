#include "algorithms/auto_round/schedule.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <set>
#include <vector>

namespace ptq {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;

TEST(DefaultLearningRate, IsOneOverIterationsButTwiceThatForLongRunsOfFewBits) {
  EXPECT_DOUBLE_EQ(DefaultLearningRate(200, 4), 1.0 / 200);
  EXPECT_DOUBLE_EQ(DefaultLearningRate(200, 2), 1.0 / 200);
  EXPECT_DOUBLE_EQ(DefaultLearningRate(1000, 4), 1.0 / 1000);
  EXPECT_DOUBLE_EQ(DefaultLearningRate(1000, 3), 2.0 / 1000);
}

TEST(LinearDecay, EndsOneStepBeforeZero) {
  EXPECT_THAT(LinearDecay(0.25, 4),
              ElementsAre(FloatEq(0.25F), FloatEq(0.1875F), FloatEq(0.125F), FloatEq(0.0625F)));
}

TEST(LinearDecay, SumsToHalfAtTheDefaultRate) {
  double sum = 0;
  for (const float rate : LinearDecay(1.0 / 200, 200)) {
    sum += rate;
  }
  EXPECT_NEAR(sum, 0.5025, 1e-6);  // what V can reach
}

TEST(LearnedScalePeak, IsLowerForShortRuns) {
  EXPECT_DOUBLE_EQ(LearnedScalePeak(1), 0.5);
  EXPECT_DOUBLE_EQ(LearnedScalePeak(12), 0.5);
  EXPECT_DOUBLE_EQ(LearnedScalePeak(15), 0.6);
  EXPECT_DOUBLE_EQ(LearnedScalePeak(20), 0.7);
  EXPECT_DOUBLE_EQ(LearnedScalePeak(25), 0.85);
  EXPECT_DOUBLE_EQ(LearnedScalePeak(30), 1.0);
  EXPECT_DOUBLE_EQ(LearnedScalePeak(1000), 1.0);
}

TEST(CosineDecay, FallsFromThePeakAndSumsToHalfOfIt) {
  const std::vector<float> rates = CosineDecay(0.7, 20);
  EXPECT_FLOAT_EQ(rates[0], 0.7F / 20);
  EXPECT_FLOAT_EQ(rates[10], 0.35F / 20);
  EXPECT_TRUE(std::is_sorted(rates.rbegin(), rates.rend()));
  EXPECT_GT(rates.back(), 0.0F);
  double sum = 0;
  for (const float rate : rates) {
    sum += rate;
  }
  EXPECT_NEAR(sum, 0.35 + 0.35 / 20, 1e-6);
}

TEST(MomentCorrections, UndoTheStartAtZero) {
  // A moment of a constant gradient 1 after k steps is 1 - decay^k.
  EXPECT_THAT(MomentCorrections(0.5, 3),
              ElementsAre(FloatEq(2.0F), FloatEq(4.0F / 3), FloatEq(8.0F / 7)));
}

TEST(BatchOrder, VisitsEverySampleOnceAnEpoch) {
  const std::vector<int64_t> order = BatchOrder(/*samples=*/12, /*batch=*/4, /*iterations=*/9, 7);
  ASSERT_EQ(order.size(), 36U);
  for (int epoch = 0; epoch < 3; ++epoch) {
    const std::set<int64_t> seen(order.begin() + epoch * 12, order.begin() + (epoch + 1) * 12);
    EXPECT_EQ(seen.size(), 12U);
    EXPECT_EQ(*seen.begin(), 0);
    EXPECT_EQ(*seen.rbegin(), 11);
  }
  EXPECT_FALSE(std::equal(order.begin(), order.begin() + 12, order.begin() + 12))
      << "the second epoch was not reshuffled";
}

TEST(BatchOrder, DropsTheIncompleteBatchOfAnEpoch) {
  const std::vector<int64_t> order = BatchOrder(/*samples=*/5, /*batch=*/2, /*iterations=*/4, 1);
  for (int epoch = 0; epoch < 2; ++epoch) {  // two batches of two, one sample left out
    const std::set<int64_t> seen(order.begin() + epoch * 4, order.begin() + (epoch + 1) * 4);
    EXPECT_EQ(seen.size(), 4U);
  }
}

TEST(BatchOrder, DependsOnTheSeedAlone) {
  EXPECT_EQ(BatchOrder(100, 8, 30, 42), BatchOrder(100, 8, 30, 42));
  EXPECT_NE(BatchOrder(100, 8, 30, 42), BatchOrder(100, 8, 30, 43));
  // mt19937_64 is the standard's; the shuffle is ours: the same everywhere.
  EXPECT_THAT(BatchOrder(8, 8, 1, 42), ElementsAre(7, 0, 5, 1, 2, 4, 3, 6));
}

}  // namespace
}  // namespace ptq
