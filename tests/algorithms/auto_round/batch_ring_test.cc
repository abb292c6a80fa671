// Batches of host chains, on the device in time.
#include "algorithms/auto_round/batch_ring.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <vector>

namespace ptq {
namespace {

TEST(BatchRing, EveryStepFindsItsSamplesInItsSlots) {
  at::manual_seed(1);
  const at::Tensor inputs = at::randn({5, 3, 4});
  const at::Tensor targets = at::randn({5, 3, 4});
  const std::vector<int64_t> order = {4, 0, 1, 3, 2, 4, 0, 0, 3, 1};
  BatchRing ring({inputs, targets}, order, /*batch=*/2, at::kCPU);
  ASSERT_EQ(ring.slots().sizes(), at::IntArrayRef({5, 2}));
  ring.Begin(0);  // someone looks at the first batch before the steps begin
  for (int64_t step = 0; step < 5; ++step) {
    ring.Begin(step);
    for (int64_t i = 0; i < 2; ++i) {
      const int64_t sample = order[static_cast<size_t>(2 * step + i)];
      const int64_t slot = ring.slots()[step][i].item<int64_t>();
      EXPECT_TRUE(ring.samples(0)[slot].equal(inputs[sample])) << step;
      EXPECT_TRUE(ring.samples(1)[slot].equal(targets[sample])) << step;
    }
    ring.End(step);
  }
}

}  // namespace
}  // namespace ptq
