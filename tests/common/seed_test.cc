#include "common/seed.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <set>

namespace ptq {
namespace {

// Bits of finished jobs hang on these numbers. The reference's first output from state 1234567 is
// 6457827717110365317, and from that state 9709514789577493705.
TEST(SeedTest, MixSeedIsTwoSteps) {
  EXPECT_EQ(MixSeed(1234567, 0), 9709514789577493705u);
  EXPECT_EQ(MixSeed(0, 0), 12035550249420947055u);
  EXPECT_EQ(MixSeed(42, 7), 18315876358090669558u);
  EXPECT_EQ(MixSeed(~uint64_t{0}, int64_t{1} << 40), 8881996411963107647u);
}

TEST(SeedTest, NeighboursHaveSeedsOfTheirOwn) {
  std::set<uint64_t> seeds;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    for (int64_t index = 0; index < 100; ++index) {
      seeds.insert(MixSeed(seed, index));
    }
  }
  EXPECT_EQ(seeds.size(), 10000u);
}

}  // namespace
}  // namespace ptq
