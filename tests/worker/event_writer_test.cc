#include "worker/event_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::SizeIs;

class EventWriterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ::signal(SIGPIPE, SIG_IGN);
    ASSERT_EQ(::pipe(ends_), 0);
  }
  void TearDown() override {
    CloseReader();
    ::close(ends_[1]);
  }
  void CloseReader() {
    if (ends_[0] >= 0) ::close(ends_[0]);
    ends_[0] = -1;
  }
  std::vector<JobEvent> ReadAll() {
    char buffer[65536];
    const ssize_t count = ::read(ends_[0], buffer, sizeof(buffer));
    std::vector<JobEvent> events;
    std::string text(buffer, static_cast<size_t>(count));
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = text.find('\n', begin);
      const auto json = ParseJson(std::string_view(text).substr(begin, end - begin));
      EXPECT_THAT(json, testing::IsOk());
      const auto event = JobEventFromJson(*json);
      EXPECT_THAT(event, testing::IsOk());
      events.push_back(*event);
      begin = end + 1;
    }
    return events;
  }
  int ends_[2];
};

TEST_F(EventWriterTest, NumbersLinesFromOne) {
  EventWriter writer(ends_[1], {});
  writer.Log("info", "first");
  JobEvent done;
  done.type = JobEvent::Type::kSucceeded;
  done.result_digest = "abc";
  writer.Write(done);
  const std::vector<JobEvent> events = ReadAll();
  ASSERT_THAT(events, SizeIs(2));
  EXPECT_EQ(events[0].sequence, 1);
  EXPECT_EQ(events[0].message, "first");
  EXPECT_EQ(events[1].sequence, 2);
  EXPECT_EQ(events[1].result_digest, "abc");
  EXPECT_LE(events[0].time, events[1].time);
}

TEST_F(EventWriterTest, DropsPhasesInQuickSuccessionButNotTheLast) {
  EventWriter writer(ends_[1], {});
  for (int i = 0; i <= 100; ++i) writer.Phase("quantize", i / 100.0);
  writer.Phase("export", 0);
  const std::vector<JobEvent> events = ReadAll();
  ASSERT_GE(events.size(), 3u);
  EXPECT_LT(events.size(), 20u);
  EXPECT_EQ(events[events.size() - 2].phase_fraction, 1);
  EXPECT_EQ(events.back().phase, "export");
}

TEST_F(EventWriterTest, NothingFollowsTheEnd) {
  EventWriter writer(ends_[1], {});
  JobEvent end;
  end.type = JobEvent::Type::kCancelled;
  writer.Write(end);
  writer.TryWrite(end);
  writer.Phase("export", 1);
  EXPECT_THAT(ReadAll(), SizeIs(1));
}

TEST_F(EventWriterTest, TellsOnceThatNobodyListens) {
  int broken = 0;
  EventWriter writer(ends_[1], [&broken] { ++broken; });
  CloseReader();
  writer.Log("info", "to nobody");
  writer.Log("info", "to nobody");
  EXPECT_EQ(broken, 1);
}

}  // namespace
}  // namespace ptq
