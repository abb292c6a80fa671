// Writes overlap their caller, keep their order, and lose no error.
#include "worker/write_behind.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

TEST(WriteBehindTest, TheCallerGoesOnWhileItWrites) {
  WriteBehind writing;
  std::promise<void> opened;
  bool written = false;
  ASSERT_THAT(writing.Start([&] {
    opened.get_future().wait();
    written = true;
    return absl::OkStatus();
  }),
              IsOk());
  EXPECT_THAT(writing.Check(), IsOk());  // would wait for ever if it waited
  opened.set_value();
  EXPECT_THAT(writing.Wait(), IsOk());
  EXPECT_TRUE(written);
  EXPECT_THAT(writing.Wait(), IsOk());
}

TEST(WriteBehindTest, OneAfterTheOther) {
  std::vector<int> order;  // written by one thread at a time
  {
    WriteBehind writing;
    for (int i = 0; i < 20; ++i) {
      ASSERT_THAT(writing.Start([&order, i] {
        order.push_back(2 * i);
        std::this_thread::yield();
        order.push_back(2 * i + 1);
        return absl::OkStatus();
      }),
                  IsOk());
    }
  }  // the last one is waited for
  ASSERT_EQ(order.size(), 40);
  for (int i = 0; i < 40; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
}

TEST(WriteBehindTest, AfterAnErrorNothingIsWritten) {
  WriteBehind writing;
  ASSERT_THAT(writing.Start([] { return absl::ResourceExhaustedError("the disk is full"); }),
              IsOk());
  bool written = false;
  const auto full = StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("the disk is full"));
  EXPECT_THAT(writing.Start([&] {
    written = true;
    return absl::OkStatus();
  }),
              full);
  EXPECT_THAT(writing.Check(), full);
  EXPECT_THAT(writing.Wait(), full);
  EXPECT_FALSE(written);
}

TEST(WriteBehindTest, AtMostAsManyAtATimeAsThereAreSlots) {
  constexpr int kSlots = 3;
  std::mutex mutex;
  std::set<int64_t> busy;  // slots
  size_t most = 0;
  WriteBehind writing(kSlots);
  for (int i = 0; i < 30; ++i) {
    PTQ_ASSERT_OK_AND_ASSIGN(const int64_t slot, writing.WaitForSlot());
    ASSERT_GE(slot, 0);
    ASSERT_LT(slot, kSlots);
    {
      const std::lock_guard lock(mutex);
      ASSERT_TRUE(busy.insert(slot).second) << "slot " << slot << " is still taken";
      most = std::max(most, busy.size());
    }
    ASSERT_THAT(writing.Start([&mutex, &busy, slot] {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      const std::lock_guard lock(mutex);
      busy.erase(slot);
      return absl::OkStatus();
    }),
                IsOk());
  }
  EXPECT_THAT(writing.Wait(), IsOk());
  EXPECT_EQ(most, kSlots);
}

TEST(WriteBehindTest, TheSlotThatWasWaitedForIsTheOneThatIsTaken) {
  std::promise<void> first;
  std::promise<void> second;
  std::promise<void> third;
  const auto until = [](std::promise<void>& promise) {
    return [gate = promise.get_future().share()] {
      gate.wait();
      return absl::OkStatus();
    };
  };
  WriteBehind writing(3);
  ASSERT_THAT(writing.Start(until(first)), IsOk());   // in slot 0
  ASSERT_THAT(writing.Start(until(second)), IsOk());  // in slot 1
  PTQ_ASSERT_OK_AND_ASSIGN(const int64_t waited_for, writing.WaitForSlot());
  EXPECT_EQ(waited_for, 2);
  // Another slot becomes free before the one that was waited for is taken.
  first.set_value();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  PTQ_ASSERT_OK_AND_ASSIGN(const int64_t again, writing.WaitForSlot());
  EXPECT_EQ(again, 2);
  ASSERT_THAT(writing.Start(until(third)), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(const int64_t next, writing.WaitForSlot());
  EXPECT_EQ(next, 0);
  second.set_value();
  third.set_value();
}

TEST(WriteBehindTest, CommitsKeepTheOrderOfTheirStart) {
  std::vector<int> order;  // of one thread
  std::promise<void> opened;
  const std::shared_future<void> gate = opened.get_future().share();
  {
    WriteBehind writing(2);
    // The first write ends after all others, which need only one slot.
    ASSERT_THAT(writing.Start(
                    [gate] {
                      gate.wait();
                      return absl::OkStatus();
                    },
                    [&order] {
                      order.push_back(0);
                      return absl::OkStatus();
                    }),
                IsOk());
    for (int i = 1; i < 10; ++i) {
      ASSERT_THAT(writing.Start([] { return absl::OkStatus(); },
                                [&order, i] {
                                  order.push_back(i);
                                  return absl::OkStatus();
                                }),
                  IsOk());
    }
    PTQ_ASSERT_OK_AND_ASSIGN(const int64_t slot, writing.WaitForSlot());
    EXPECT_EQ(slot, 1);
    opened.set_value();
  }
  EXPECT_THAT(order, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9));
}

TEST(WriteBehindTest, ACommitThatWaitsTakesNoSlot) {
  std::promise<void> opened;
  WriteBehind writing(1);
  ASSERT_THAT(writing.Start([] { return absl::OkStatus(); },
                            [&opened] {
                              opened.get_future().wait();
                              return absl::OkStatus();
                            }),
              IsOk());
  // Would wait for ever if it waited for the commit.
  int committed = 0;
  for (int i = 0; i < 5; ++i) {
    ASSERT_THAT(writing.Start([] { return absl::OkStatus(); },
                              [&committed] {
                                ++committed;
                                return absl::OkStatus();
                              }),
                IsOk());
  }
  EXPECT_THAT(writing.WaitForSlot(), IsOk());
  opened.set_value();
  EXPECT_THAT(writing.Wait(), IsOk());
  EXPECT_EQ(committed, 5);
}

TEST(WriteBehindTest, WhatWasStartedBeforeAFailedWriteIsCommittedAndNothingAfter) {
  std::promise<void> opened;
  const std::shared_future<void> gate = opened.get_future().share();
  std::vector<int> committed;
  const auto commit = [&committed](int i) {
    return [&committed, i] {
      committed.push_back(i);
      return absl::OkStatus();
    };
  };
  const auto lost = StatusIs(absl::StatusCode::kDataLoss, HasSubstr("the second block"));
  WriteBehind writing(3);
  ASSERT_THAT(writing.Start(
                  [gate] {
                    gate.wait();
                    return absl::OkStatus();
                  },
                  commit(0)),
              IsOk());
  ASSERT_THAT(writing.Start([gate] { return gate.wait(), absl::DataLossError("the second block"); },
                            commit(1)),
              IsOk());
  ASSERT_THAT(writing.Start([] { return absl::OkStatus(); }, commit(2)), IsOk());
  opened.set_value();
  EXPECT_THAT(writing.Wait(), lost);
  EXPECT_THAT(writing.WaitForSlot(), lost);
  EXPECT_THAT(writing.Start([] { return absl::OkStatus(); }, commit(3)), lost);
  EXPECT_THAT(committed, ElementsAre(0));
}

TEST(WriteBehindTest, AfterAFailedCommitNothingIsCommitted) {
  int committed = 0;
  WriteBehind writing(2);
  ASSERT_THAT(writing.Start([] { return absl::OkStatus(); },
                            [] { return absl::NotFoundError("an input is gone"); }),
              IsOk());
  const absl::Status second = writing.Start([] { return absl::OkStatus(); },
                                            [&committed] {
                                              ++committed;
                                              return absl::OkStatus();
                                            });
  const auto gone = StatusIs(absl::StatusCode::kNotFound, HasSubstr("an input is gone"));
  if (!second.ok()) {  // the first was over already
    EXPECT_THAT(second, gone);
  }
  EXPECT_THAT(writing.Wait(), gone);
  EXPECT_THAT(writing.Check(), gone);
  EXPECT_EQ(committed, 0);
}

TEST(WriteBehindTest, WhatIsThrownIsAStatus) {
  WriteBehind writing;
  ASSERT_THAT(
      writing.Start([]() -> absl::Status { throw std::runtime_error("a tensor went wrong"); }),
      IsOk());
  EXPECT_THAT(writing.Wait(),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("a tensor went wrong")));
}

TEST(WriteBehindTest, WhatAWriteHoldsIsReleasedWhenItIsDone) {
  WriteBehind writing;
  auto held = std::make_shared<int>(7);
  const std::weak_ptr<int> watched = held;
  ASSERT_THAT(writing.Start([held = std::move(held)] { return absl::OkStatus(); }), IsOk());
  while (!watched.expired()) std::this_thread::yield();  // nobody has asked for the result yet
  EXPECT_THAT(writing.Wait(), IsOk());
}

}  // namespace
}  // namespace ptq
