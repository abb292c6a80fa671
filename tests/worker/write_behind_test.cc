// Writes overlap their caller, keep their order, and lose no error.
#include "worker/write_behind.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
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
