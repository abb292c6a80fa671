// How a GPU's memory is shared out.
#include "worker/device.h"

#include <gtest/gtest.h>

namespace ptq {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

TEST(SplitDeviceMemoryTest, AQuarterEachForFisherOutputsAndKeptWeights) {
  const DeviceShares shares = SplitDeviceMemory(80 * kGiB, 2 * kGiB);
  EXPECT_EQ(shares.fisher_outputs, 20 * kGiB);
  EXPECT_EQ(shares.kept_weights, 20 * kGiB);
}

TEST(SplitDeviceMemoryTest, LongChainsLeaveNoRoomForWeights) {
  EXPECT_EQ(SplitDeviceMemory(24 * kGiB, 3 * kGiB).kept_weights, 3 * kGiB);
  EXPECT_EQ(SplitDeviceMemory(24 * kGiB, 4 * kGiB).kept_weights, 0);
  EXPECT_EQ(SplitDeviceMemory(24 * kGiB, 40 * kGiB).kept_weights, 0);
  EXPECT_EQ(SplitDeviceMemory(24 * kGiB, 40 * kGiB).fisher_outputs, 6 * kGiB);
}

TEST(SplitDeviceMemoryTest, WorkKeepsWhatIsPromised) {
  for (int64_t chain = 0; chain <= 16; ++chain) {
    const DeviceShares shares = SplitDeviceMemory(96 * kGiB, chain * kGiB);
    EXPECT_LE(shares.kept_weights + 3 * chain * kGiB, 48 * kGiB) << chain;
    EXPECT_GE(96 * kGiB - shares.fisher_outputs - shares.kept_weights - chain * kGiB, 40 * kGiB)
        << chain;
  }
}

}  // namespace
}  // namespace ptq
