// Rotary tables against the closed forms of their papers, in float64.
#include "models/rotary.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "tests/testing/tiny_llama.h"

namespace ptq {
namespace {

using Type = RopeConfig::Type;

constexpr int64_t kDim = 16;
constexpr double kTheta = 10000.0;

ModelConfig Config(Type type, double factor) {
  ModelConfig config = testing::TinyLlamaConfig();
  config.rope.type = type;
  config.rope.theta = kTheta;
  config.rope.factor = factor;
  return config;
}

RotaryFrequencies FrequenciesOf(const ModelConfig& config, int64_t length) {
  return ComputeRotaryFrequencies(config.rope, config, length);
}

RotaryTable TableOf(const ModelConfig& config, int64_t length, at::ScalarType dtype = at::kFloat) {
  return ComputeRotaryTable(config.rope, config, length, dtype, at::kCPU);
}

double Frequency(int64_t index, double theta = kTheta) {
  return std::pow(theta, -2.0 * static_cast<double>(index) / kDim);
}

double Inverse(const ModelConfig& config, int64_t length, int64_t index) {
  return FrequenciesOf(config, length).inverse[index].item<double>();
}

TEST(RotaryTest, DefaultTableHoldsCosinesAndSinesTwice) {
  const RotaryTable table = TableOf(Config(Type::kDefault, 1), 10);
  ASSERT_EQ(table.cos.sizes(), (std::vector<int64_t>{10, kDim}));
  ASSERT_EQ(table.sin.sizes(), (std::vector<int64_t>{10, kDim}));
  for (int64_t position = 0; position < 10; ++position) {
    for (int64_t column = 0; column < kDim; ++column) {
      const double angle = static_cast<double>(position) * Frequency(column % (kDim / 2));
      EXPECT_NEAR(table.cos[position][column].item<double>(), std::cos(angle), 2e-6);
      EXPECT_NEAR(table.sin[position][column].item<double>(), std::sin(angle), 2e-6);
    }
  }
}

TEST(RotaryTest, TableIsRoundedToTheComputeDtypeAtTheEnd) {
  const ModelConfig config = Config(Type::kDefault, 1);
  const RotaryTable wide = TableOf(config, 40);
  const RotaryTable narrow = TableOf(config, 40, at::kBFloat16);
  EXPECT_TRUE(narrow.cos.equal(wide.cos.to(at::kBFloat16)));
  EXPECT_TRUE(narrow.sin.equal(wide.sin.to(at::kBFloat16)));
}

TEST(RotaryTest, LinearDividesEveryFrequency) {
  for (int64_t i = 0; i < kDim / 2; ++i) {
    EXPECT_NEAR(Inverse(Config(Type::kLinear, 4), 100, i), Frequency(i) / 4, 1e-7 * Frequency(i));
  }
}

TEST(RotaryTest, DynamicStretchesTheBaseBeyondTheTrainedLength) {
  const ModelConfig config = Config(Type::kDynamic, 2);  // trained on 64 positions
  const double stretched = kTheta * std::pow(2.0 * 160 / 64 - 1, kDim / (kDim - 2.0));
  for (int64_t i = 0; i < kDim / 2; ++i) {
    EXPECT_NEAR(Inverse(config, 64, i), Frequency(i), 1e-6 * Frequency(i));
    EXPECT_NEAR(Inverse(config, 160, i), Frequency(i, stretched), 1e-6 * Frequency(i));
  }
}

TEST(RotaryTest, Llama3KeepsFastInterpolatesMiddleAndDividesSlowFrequencies) {
  ModelConfig config = Config(Type::kLlama3, 8);
  config.rope.low_freq_factor = 1;
  config.rope.high_freq_factor = 4;
  config.rope.original_max_position_embeddings = 256;
  int kept = 0;
  int mixed = 0;
  int divided = 0;
  for (int64_t i = 0; i < kDim / 2; ++i) {
    const double frequency = Frequency(i);
    const double turns = 256 * frequency / (2 * std::numbers::pi);
    double expected = frequency;
    if (turns < 1) {
      expected = frequency / 8;
      ++divided;
    } else if (turns <= 4) {
      const double smooth = (turns - 1) / (4 - 1);
      expected = (1 - smooth) * frequency / 8 + smooth * frequency;
      ++mixed;
    } else {
      ++kept;
    }
    EXPECT_NEAR(Inverse(config, 1024, i), expected, 1e-6 * frequency) << i;
  }
  EXPECT_GT(kept, 0);
  EXPECT_GT(mixed, 0);
  EXPECT_GT(divided, 0);
}

TEST(RotaryTest, YarnRampsBetweenKeptAndDividedFrequencies) {
  for (const bool truncate : {true, false}) {
    ModelConfig config = Config(Type::kYarn, 4);
    config.rope.original_max_position_embeddings = 512;
    config.rope.truncate = truncate;
    const auto index = [](double turns) {
      return kDim * std::log(512 / (turns * 2 * std::numbers::pi)) / (2 * std::log(kTheta));
    };
    double low = index(32);
    double high = index(1);
    if (truncate) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    int ramped = 0;
    for (int64_t i = 0; i < kDim / 2; ++i) {
      const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
      ramped += ramp > 0 && ramp < 1;
      const double expected = Frequency(i) * (1 - ramp) + Frequency(i) / 4 * ramp;
      EXPECT_NEAR(Inverse(config, 2048, i), expected, 1e-6 * Frequency(i)) << i;
    }
    EXPECT_GT(ramped, 1);
  }
}

TEST(RotaryTest, YarnAttentionFactorScalesTheTable) {
  ModelConfig config = Config(Type::kYarn, 4);
  config.rope.original_max_position_embeddings = 16;
  const double derived = 0.1 * std::log(4.0) + 1;
  EXPECT_DOUBLE_EQ(FrequenciesOf(config, 64).attention_factor, derived);
  const RotaryTable table = TableOf(config, 4);
  EXPECT_NEAR(table.cos[0][0].item<double>(), derived, 1e-6);

  config.rope.mscale = 0.7;
  config.rope.mscale_all_dim = 1.3;
  EXPECT_DOUBLE_EQ(FrequenciesOf(config, 64).attention_factor,
                   (0.07 * std::log(4.0) + 1) / (0.13 * std::log(4.0) + 1));
  config.rope.attention_factor = 1.25;
  EXPECT_DOUBLE_EQ(FrequenciesOf(config, 64).attention_factor, 1.25);
}

TEST(RotaryTest, ApplyTurnsEachPairByItsAngle) {
  at::manual_seed(1);
  const RotaryTable table = TableOf(Config(Type::kDefault, 1), 6);
  const at::Tensor states = at::randn({2, 6, 3, kDim});
  const at::Tensor rotated = ApplyRotary(states, table);
  for (int64_t t = 0; t < 6; ++t) {
    for (int64_t i = 0; i < kDim / 2; ++i) {
      const double angle = static_cast<double>(t) * Frequency(i);
      const double x = states[1][t][2][i].item<double>();
      const double y = states[1][t][2][i + kDim / 2].item<double>();
      EXPECT_NEAR(rotated[1][t][2][i].item<double>(), x * std::cos(angle) - y * std::sin(angle),
                  1e-5);
      EXPECT_NEAR(rotated[1][t][2][i + kDim / 2].item<double>(),
                  y * std::cos(angle) + x * std::sin(angle), 1e-5);
    }
  }
}

}  // namespace
}  // namespace ptq
