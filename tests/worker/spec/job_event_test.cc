// One JSON object a line: sequence, time, type and the type's own fields, no others.
#include "worker/spec/job_event.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

JobEvent EventOf(JobEvent::Type type) {
  JobEvent event;
  event.sequence = 5;
  event.time = absl::FromUnixMicros(1'700'000'000'250'000);
  event.type = type;
  return event;
}

// The line of `event`, checked to read back to the same line.
std::string Line(const JobEvent& event) {
  const std::string line = DumpJson(JobEventToJson(event));
  const auto json = ParseJson(line);
  EXPECT_TRUE(json.ok());
  const auto back = JobEventFromJson(*json);
  EXPECT_TRUE(back.ok()) << back.status();
  if (back.ok()) {
    EXPECT_EQ(DumpJson(JobEventToJson(*back)), line);
    EXPECT_EQ(back->time, event.time);
  }
  return line;
}

// What every line begins with.
std::string Head(const std::string& type) {
  return R"({"sequence":5,"time":"2023-11-14T22:13:20.250000Z","type":")" + type + '"';
}

TEST(JobEventTest, WritesTheTypesOwnFields) {
  JobEvent event = EventOf(JobEvent::Type::kStarted);
  event.blocks_total = 6;
  event.blocks_resumed = 2;
  event.device = "cpu";
  EXPECT_EQ(Line(event),
            Head("started") + R"(,"blocks_total":6,"blocks_resumed":2,"device":"cpu"})");

  event = EventOf(JobEvent::Type::kPhase);
  event.phase = "quantize";
  event.phase_fraction = 0.5;
  event.message = "of another type";
  EXPECT_EQ(Line(event), Head("phase") + R"(,"phase":"quantize","phase_fraction":0.5})");

  event = EventOf(JobEvent::Type::kLog);
  event.severity = "warning";
  event.message = "two\nlines";
  EXPECT_EQ(Line(event), Head("log") + R"(,"severity":"warning","message":"two\nlines"})");

  event = EventOf(JobEvent::Type::kSucceeded);
  event.result_digest = std::string(64, 'a');
  event.host_peak_bytes = 1;
  event.device_peak_bytes = 2;
  EXPECT_EQ(Line(event), Head("succeeded") + R"(,"result_digest":")" + std::string(64, 'a') +
                             R"(","host_peak_bytes":1,"device_peak_bytes":2})");

  event = EventOf(JobEvent::Type::kFailed);
  event.code = absl::StatusCode::kInvalidArgument;
  event.message = "tensor x has NaN";
  EXPECT_EQ(Line(event),
            Head("failed") + R"(,"code":"INVALID_ARGUMENT","message":"tensor x has NaN"})");

  EXPECT_EQ(Line(EventOf(JobEvent::Type::kCancelled)), Head("cancelled") + "}");
}

TEST(JobEventTest, LossesMayBeAbsent) {
  JobEvent event = EventOf(JobEvent::Type::kBlockDone);
  event.block = 3;
  event.block_name = "model.layers.3";
  event.seconds = 1.5;
  event.host_peak_bytes = 7;
  EXPECT_EQ(Line(event), Head("block_done") +
                             R"(,"block":3,"block_name":"model.layers.3","seconds":1.5,)"
                             R"("loss_first":null,"loss_best":null,)"
                             R"("host_peak_bytes":7,"device_peak_bytes":0})");
  event.loss_first = 0.25;
  event.loss_best = 0.125;
  EXPECT_THAT(Line(event), HasSubstr(R"("loss_first":0.25,"loss_best":0.125)"));
  PTQ_ASSERT_OK_AND_ASSIGN(const JobEvent back, JobEventFromJson(JobEventToJson(event)));
  EXPECT_EQ(back.loss_first, 0.25);
  EXPECT_EQ(back.loss_best, 0.125);
}

TEST(JobEventTest, NamesWhatIsMissingOrUnknown) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"([])", "sequence"},
      {R"({"time":"2023-11-14T22:13:20Z","type":"cancelled"})", "sequence"},
      {R"({"sequence":1,"type":"cancelled"})", "time"},
      {R"({"sequence":1,"time":"yesterday","type":"cancelled"})", "yesterday"},
      {R"({"sequence":1,"time":"2023-11-14T22:13:20Z"})", "type"},
      {R"({"sequence":1,"time":"2023-11-14T22:13:20Z","type":"paused"})", "\"paused\""},
      {R"({"sequence":1,"time":"2023-11-14T22:13:20Z","type":"phase","phase":1})", "phase"},
      {R"({"sequence":1,"time":"2023-11-14T22:13:20Z","type":"failed","code":"INTERNAL"})",
       "message"}};
  for (const auto& [text, what] : cases) {
    PTQ_ASSERT_OK_AND_ASSIGN(const Json json, ParseJson(text));
    EXPECT_THAT(JobEventFromJson(json),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(what)))
        << text;
  }
}

}  // namespace
}  // namespace ptq
