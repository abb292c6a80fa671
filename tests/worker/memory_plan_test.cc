// How the memory of a GPU is planned for a job.
#include "worker/memory_plan.h"

#include <gmock/gmock.h>

#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::ptq::testing::StatusIs;
using ::testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30;

// Llama-3.1-8B, 128 windows of 2048 tokens, recipe default.
MemoryShape Llama8B() {
  return {.on_gpu = true,
          .samples = 128,
          .held_out = 13,
          .fisher_samples = 32,
          .batch = 8,
          .length = 2048,
          .hidden = 4096,
          .intermediate = 14336,
          .attention = 4096,
          .key_value = 2048,
          .vocabulary = 128256,
          .block_elements = 218112000,
          .widest_input = 14336,
          .element_bytes = 2,
          .tunes = true,
          .learns_scales = true,
          .fp8 = true,
          .hessians = false};
}

MemoryPlan PlanOn(int64_t gib, const MemoryShape& shape = Llama8B(),
                  LowMemory choice = LowMemory::kAuto,
                  const std::optional<MicroBatches>& fixed = {}) {
  return PlanMemory(shape, {.free_bytes = gib * kGiB, .total_bytes = gib * kGiB}, choice, fixed);
}

TEST(MemoryPlan, ALargeGpuTakesTheWholeBatchAndKeepsBlocks) {
  const MemoryPlan plan = PlanOn(80);
  EXPECT_EQ(plan.micro_batches, (MicroBatches{.forward = 8, .fisher = 8, .tuning = 8}));
  EXPECT_FALSE(plan.chains_on_host);
  EXPECT_FALSE(plan.low);
  EXPECT_EQ(plan.fisher_outputs, 20 * kGiB);
  EXPECT_EQ(plan.kept_weights, 20 * kGiB);
}

TEST(MemoryPlan, LongChainsLeaveNoRoomForWeights) {
  MemoryShape shape = Llama8B();
  shape.samples = 512;
  shape.held_out = 0;  // 8 GiB a chain
  const MemoryPlan plan = PlanOn(80, shape);
  EXPECT_FALSE(plan.chains_on_host);
  EXPECT_EQ(plan.kept_weights, 16 * kGiB);
  EXPECT_EQ(PlanOn(48, shape).kept_weights, 0);
}

TEST(MemoryPlan, LowMemoryIsSmallWhateverTheDevice) {
  for (const int64_t gib : {8, 80, 141}) {
    const MemoryPlan plan = PlanOn(gib, Llama8B(), LowMemory::kOn);
    EXPECT_EQ(plan.micro_batches, (MicroBatches{.forward = 2, .fisher = 2, .tuning = 2})) << gib;
    EXPECT_TRUE(plan.low);
    EXPECT_TRUE(plan.chains_on_host);
    EXPECT_EQ(plan.kept_weights, 0);
    EXPECT_EQ(plan.fisher_outputs, 0);
    EXPECT_LT(plan.needed_bytes, 6 * kGiB);
  }
  // And smaller still where that is too much.
  const MemoryPlan plan = PlanOn(5, Llama8B(), LowMemory::kOn);
  EXPECT_EQ(plan.micro_batches.tuning, 1);
}

TEST(MemoryPlan, SmallerGpusTakeMicroBatchesFirstThenTheHost) {
  int64_t last_tuning = 8;
  bool last_host = false;
  for (int64_t gib = 80; gib >= 3; --gib) {
    const MemoryPlan plan = PlanOn(gib);
    EXPECT_TRUE(!last_host || plan.chains_on_host) << gib;
    if (last_host) EXPECT_LE(plan.micro_batches.tuning, last_tuning) << gib;
    EXPECT_GE(plan.micro_batches.tuning * 2048, plan.chains_on_host ? 2048 : kSmallTuningTokens);
    if (plan.micro_batches.tuning > 1) {
      const int64_t all = plan.needed_bytes + plan.kept_weights;
      EXPECT_LE(all, gib * kGiB - kGiB / 2) << gib;
    }
    last_host = plan.chains_on_host;
    last_tuning = plan.micro_batches.tuning;
  }
  EXPECT_TRUE(last_host);
  EXPECT_EQ(last_tuning, 1) << "the smallest plan where nothing fits";
}

TEST(MemoryPlan, OtherProcessesCount) {
  const MemoryPlan plan = PlanMemory(Llama8B(), {.free_bytes = 8 * kGiB, .total_bytes = 80 * kGiB},
                                     LowMemory::kAuto, {});
  EXPECT_TRUE(plan.chains_on_host);
  EXPECT_LE(plan.needed_bytes + plan.kept_weights, 8 * kGiB);
}

TEST(MemoryPlan, SizesOfAnEarlierRunStayOnAnyDevice) {
  const MicroBatches fixed = {.forward = 3, .fisher = 5, .tuning = 2};
  for (const int64_t gib : {2, 16, 80}) {
    EXPECT_EQ(PlanOn(gib, Llama8B(), LowMemory::kAuto, fixed).micro_batches, fixed);
    EXPECT_EQ(PlanOn(gib, Llama8B(), LowMemory::kOn, fixed).micro_batches, fixed);
  }
  EXPECT_TRUE(PlanOn(8, Llama8B(), LowMemory::kAuto, fixed).chains_on_host);
  EXPECT_FALSE(PlanOn(80, Llama8B(), LowMemory::kAuto, fixed).chains_on_host);
  MemoryShape host = Llama8B();
  host.on_gpu = false;
  EXPECT_EQ(PlanOn(0, host, LowMemory::kAuto, fixed).micro_batches, fixed);
}

TEST(MemoryPlan, ACpuDoesNotAsk) {
  MemoryShape shape = Llama8B();
  shape.on_gpu = false;
  for (const LowMemory choice : {LowMemory::kAuto, LowMemory::kOn}) {
    const MemoryPlan plan = PlanOn(0, shape, choice);
    EXPECT_EQ(plan.micro_batches, (MicroBatches{.forward = 2, .fisher = 1, .tuning = 8}));
    EXPECT_FALSE(plan.chains_on_host);
  }
  shape.length = 0;  // no calibration data
  shape.samples = 0;
  shape.batch = 1;
  EXPECT_EQ(PlanOn(0, shape).micro_batches, MicroBatches());
}

TEST(MemoryPlan, MicroBatchesAreHalvedDownToOne) {
  std::optional<MicroBatches> sizes = MicroBatches{.forward = 8, .fisher = 1, .tuning = 3};
  sizes = Halved(*sizes);
  EXPECT_EQ(sizes, (MicroBatches{.forward = 4, .fisher = 1, .tuning = 2}));
  sizes = Halved(*Halved(*sizes));
  EXPECT_EQ(sizes, MicroBatches());
  EXPECT_EQ(Halved(*sizes), std::nullopt);
}

TEST(MemoryPlan, MicroBatchesSurviveJson) {
  const MicroBatches sizes = {.forward = 8, .fisher = 1, .tuning = 3};
  PTQ_ASSERT_OK_AND_ASSIGN(const MicroBatches read,
                           MicroBatchesFromJson(MicroBatchesToJson(sizes)));
  EXPECT_EQ(read, sizes);
  EXPECT_THAT(MicroBatchesFromJson(Json{{"forward", 1}, {"fisher", 0}, {"tuning", 1}}),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("fisher")));
  EXPECT_THAT(MicroBatchesFromJson(Json()),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("forward")));
}

}  // namespace
}  // namespace ptq
