#include "algorithms/auto_round/schedule.h"

#include <array>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <numeric>
#include <random>
#include <utility>

namespace ptq {
namespace {

// Uniform in [0, bound), bound >= 1. Own arithmetic: the standard distributions differ by library.
uint64_t UniformBelow(std::mt19937_64& random, uint64_t bound) {
  const uint64_t rejected = (0 - bound) % bound;  // 2^64 mod bound
  uint64_t draw = random();
  while (draw < rejected) {
    draw = random();
  }
  return draw % bound;
}

void Shuffle(std::vector<int64_t>& values, std::mt19937_64& random) {  // Fisher and Yates
  for (size_t i = values.size(); i > 1; --i) {
    std::swap(values[i - 1], values[UniformBelow(random, i)]);
  }
}

}  // namespace

double DefaultLearningRate(int64_t iterations, int bits) {
  return (iterations >= 1000 && bits <= 3 ? 2.0 : 1.0) / static_cast<double>(iterations);
}

std::vector<float> LinearDecay(double rate, int64_t iterations) {
  std::vector<float> rates(static_cast<size_t>(iterations));
  for (int64_t k = 0; k < iterations; ++k) {
    rates[static_cast<size_t>(k)] =
        static_cast<float>(rate * (1.0 - static_cast<double>(k) / static_cast<double>(iterations)));
  }
  return rates;
}

double LearnedScalePeak(int64_t iterations) {
  struct Point {
    double iterations;
    double peak;
  };
  constexpr std::array<Point, 4> kPoints = {{{12, .5}, {15, .6}, {20, .7}, {30, 1.0}}};
  const auto n = static_cast<double>(iterations);
  if (n <= kPoints.front().iterations) {
    return kPoints.front().peak;
  }
  for (size_t i = 1; i < kPoints.size(); ++i) {
    const Point& from = kPoints[i - 1];
    const Point& to = kPoints[i];
    if (n <= to.iterations) {
      return from.peak +
             (to.peak - from.peak) * (n - from.iterations) / (to.iterations - from.iterations);
    }
  }
  return kPoints.back().peak;
}

std::vector<float> CosineDecay(double peak, int64_t iterations) {
  std::vector<float> rates(static_cast<size_t>(iterations));
  for (int64_t k = 0; k < iterations; ++k) {
    const double angle =
        std::numbers::pi * static_cast<double>(k) / static_cast<double>(iterations);
    rates[static_cast<size_t>(k)] =
        static_cast<float>(peak / static_cast<double>(iterations) * (1.0 + std::cos(angle)) / 2.0);
  }
  return rates;
}

std::vector<float> MomentCorrections(double decay, int64_t iterations) {
  std::vector<float> corrections(static_cast<size_t>(iterations));
  double power = 1.0;
  for (float& correction : corrections) {
    power *= decay;
    correction = static_cast<float>(1.0 / (1.0 - power));
  }
  return corrections;
}

std::vector<int64_t> BatchOrder(int64_t samples, int64_t batch, int64_t iterations, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int64_t> epoch(static_cast<size_t>(samples));
  std::iota(epoch.begin(), epoch.end(), 0);
  std::vector<int64_t> order;
  order.reserve(static_cast<size_t>(iterations * batch));
  int64_t next = samples;  // in the epoch; nothing was shuffled yet
  for (int64_t k = 0; k < iterations; ++k) {
    if (next + batch > samples) {
      Shuffle(epoch, random);
      next = 0;
    }
    order.insert(order.end(), epoch.begin() + next, epoch.begin() + next + batch);
    next += batch;
  }
  return order;
}

}  // namespace ptq
