// API messages as scripts see them.
#include "client/message_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ptq {
namespace {

v1::QuantizationJob ExampleJob() {
  v1::QuantizationJob job;
  job.set_name("tenants/default/quantizationJobs/j1");
  job.set_state(v1::QuantizationJob::RUNNING);
  job.mutable_spec()->mutable_auto_round()->set_iterations(200);
  job.mutable_spec()->mutable_auto_round()->set_recipe("paper");
  job.mutable_spec()->set_seed(18'446'744'073'709'551'615u);
  (*job.mutable_labels())["team"] = "nlp";
  (*job.mutable_labels())["a"] = "b";
  job.mutable_progress()->mutable_elapsed()->set_seconds(12);
  job.mutable_progress()->mutable_elapsed()->set_nanos(500'000'000);
  job.mutable_progress()->set_host_peak_bytes(5'000'000'000);
  job.mutable_error()->set_code(3);
  job.mutable_error()->set_message("NaN in layer 2");
  job.mutable_create_time()->set_seconds(1'700'000'000);
  job.set_job_spec_json(R"({"bits":4})");
  return job;
}

TEST(MessageJsonTest, IntegersAreNumbersAndEnumsAreNames) {
  const Json json = MessageToJson(ExampleJob());
  EXPECT_EQ(json["state"], "RUNNING");
  EXPECT_EQ(json["progress"]["host_peak_bytes"].dump(), "5000000000");
  EXPECT_EQ(json["spec"]["seed"].dump(), "18446744073709551615");
  EXPECT_EQ(json["spec"]["auto_round"]["iterations"].dump(), "200");
  EXPECT_EQ(json["spec"]["auto_round"]["recipe"], "paper");
  EXPECT_EQ(json["spec"]["cache_policy"], "CACHE_POLICY_UNSPECIFIED");
}

TEST(MessageJsonTest, TimesAreRfc3339AndDurationsSeconds) {
  const Json json = MessageToJson(ExampleJob());
  EXPECT_EQ(json["create_time"], "2023-11-14T22:13:20.000000Z");
  EXPECT_EQ(json["progress"]["elapsed_seconds"], 12.5);
  EXPECT_TRUE(json["progress"]["eta_seconds"].is_null());
}

TEST(MessageJsonTest, UnsetFieldsAreNullAndOtherMembersOfAOneofAbsent) {
  const Json json = MessageToJson(ExampleJob());
  EXPECT_TRUE(json["end_time"].is_null());
  EXPECT_TRUE(json["result_digest"].is_null());
  EXPECT_FALSE(json["spec"].contains("gptq"));
  EXPECT_TRUE(json["spec"]["auto_round"]["batch_size"].is_null());
  EXPECT_TRUE(json["spec"]["auto_round"]["fisher_tokens"].is_null());
  EXPECT_EQ(json["warnings"], Json::array());
}

TEST(MessageJsonTest, ErrorsHaveTheirCodesNames) {
  EXPECT_EQ(MessageToJson(ExampleJob())["error"],
            (Json{{"code", "INVALID_ARGUMENT"}, {"message", "NaN in layer 2"}}));
}

TEST(MessageJsonTest, LabelsAreSortedAndTheSpecIsAnObject) {
  const Json json = MessageToJson(ExampleJob());
  EXPECT_EQ(DumpJson(json["labels"]), R"({"a":"b","team":"nlp"})");
  EXPECT_EQ(json["job_spec"]["bits"], 4);
  EXPECT_FALSE(json.contains("job_spec_json"));
}

TEST(MessageJsonTest, EventsHaveATypeAndItsOwnFields) {
  v1::JobEvent event;
  event.set_sequence(7);
  event.mutable_time()->set_seconds(1'700'000'000);
  event.mutable_block()->set_block(1);
  event.mutable_block()->set_name("model.layers.1");
  event.mutable_block()->set_loss_first(0.5);
  EXPECT_EQ(DumpJson(EventToJson(event)),
            R"({"sequence":7,"time":"2023-11-14T22:13:20.000000Z","type":"block","block":1,)"
            R"("name":"model.layers.1","seconds":0.0,"loss_first":0.5,"loss_best":null})");
  *event.mutable_snapshot() = ExampleJob();
  EXPECT_EQ(EventToJson(event)["type"], "snapshot");
  EXPECT_EQ(EventToJson(event)["job"]["state"], "RUNNING");
}

}  // namespace
}  // namespace ptq
