#include "worker/stop_signals.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <thread>

namespace ptq {
namespace {

using std::chrono::milliseconds;

// The token of a child process; static, because a detached thread holds it.
CancellationToken token;

[[noreturn]] void SignalMyself(int signal, milliseconds grace, milliseconds busy, bool polite) {
  StopOnSignals(&token, grace, [] { std::fputs("last words", stderr); });
  ::kill(::getpid(), signal);
  const auto end = std::chrono::steady_clock::now() + busy;
  while (std::chrono::steady_clock::now() < end) {
    if (polite && token.IsCancelled()) ::_exit(7);
    std::this_thread::sleep_for(milliseconds(5));
  }
  ::_exit(8);
}

class StopSignalsDeathTest : public ::testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(StopSignalsDeathTest, CodeThatLooksAtTheTokenEndsByItself) {
  EXPECT_EXIT(SignalMyself(SIGTERM, milliseconds(20'000), milliseconds(20'000), true),
              ::testing::ExitedWithCode(7), "stopping");
  EXPECT_EXIT(SignalMyself(SIGINT, milliseconds(20'000), milliseconds(20'000), true),
              ::testing::ExitedWithCode(7), "stopping");
}

TEST_F(StopSignalsDeathTest, CodeThatDoesNotIsEndedAfterTheGrace) {
  EXPECT_EXIT(SignalMyself(SIGTERM, milliseconds(100), milliseconds(60'000), false),
              ::testing::ExitedWithCode(kStoppedExitStatus), "last words");
}

}  // namespace
}  // namespace ptq
