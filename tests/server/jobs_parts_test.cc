// The small parts of server/jobs and server/rpc: names, roots, spec conversion, progress, logs,
// tokens.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>

#include "common/file.h"
#include "google/rpc/error_details.pb.h"
#include "proto/algorithm_field.h"
#include "server/errors/status_details.h"
#include "server/jobs/job_logs.h"
#include "server/jobs/model_roots.h"
#include "server/jobs/progress_tracker.h"
#include "server/jobs/resource_names.h"
#include "server/jobs/spec_conversion.h"
#include "server/listen_address.h"
#include "server/rpc/page_token.h"
#include "server/rpc/report_conversion.h"
#include "tests/client/scratch_folder.h"
#include "tests/testing/status_matchers.h"
#include "worker/spec/job_spec.h"

namespace ptq {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

TEST(ResourceNamesTest, WellFormedNamesOfTheOneTenant) {
  PTQ_ASSERT_OK_AND_ASSIGN(const ResourceName name,
                           ParseResourceName("tenants/default/models/abc", "models", "name"));
  EXPECT_EQ(name.id, "abc");
  EXPECT_THAT(ParseResourceName("tenants/other/models/abc", "models", "name"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("tenants/other")));
  for (const char* bad : {"", "models/abc", "tenants/default/models/", "tenants/default/models/A",
                          "tenants/default/datasets/abc", "tenants/default/models/..",
                          "tenants/default/models/a/b", "tenants//models/abc"}) {
    EXPECT_THAT(ParseResourceName(bad, "models", "name"),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("name: ")))
        << bad;
  }
}

TEST(ResourceNamesTest, UploadsNeedUuidDigestAndSize) {
  const std::string hash(64, 'a');
  const std::string uuid = "123e4567-e89b-42d3-a456-426614174000";
  PTQ_ASSERT_OK_AND_ASSIGN(const UploadName name, ParseUploadName("tenants/default/uploads/" +
                                                                  uuid + "/blobs/" + hash + "/17"));
  EXPECT_EQ(name.digest.size_bytes(), 17);
  for (const std::string& bad :
       {"tenants/default/uploads/../blobs/" + hash + "/17",
        "tenants/default/uploads/" + uuid + "/blobs/" + hash + "/-1",
        "tenants/default/uploads/" + uuid + "/blobs/" + hash + "/99999999999999999999",
        "tenants/default/uploads/" + uuid + "/blobs/" + hash.substr(1) + "/17",
        "tenants/default/uploads/" + uuid + "/blobs/" + std::string(64, 'A') + "/17"}) {
    EXPECT_THAT(ParseUploadName(bad),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("resource_name")))
        << bad;
  }
}

TEST(SpecConversionTest, EveryAlgorithmHasItsFieldInTheApi) {
  for (const char* name : kAlgorithmNames) {
    v1::QuantizationSpec spec;
    spec.set_model("tenants/default/models/m");
    spec.set_calibration_dataset("tenants/default/datasets/d");
    ASSERT_TRUE(SetAlgorithmField(name, spec)) << name;
    EXPECT_EQ(AlgorithmFieldName(spec), name);
    PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec converted, ToJobSpec(spec));
    EXPECT_EQ(converted.algorithm, *ParseAlgorithm(name));
  }
  v1::QuantizationSpec unset;
  EXPECT_EQ(AlgorithmFieldName(unset), "");
  for (const char* other : {"", "scheme", "magic"}) EXPECT_FALSE(SetAlgorithmField(other, unset));
}

TEST(SpecConversionTest, AConversionHasAModelAndFormats) {
  v1::QuantizationSpec spec;
  spec.set_model("tenants/default/models/m");
  spec.mutable_convert();
  spec.add_output_formats("gguf");
  PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec converted, ToJobSpec(spec));
  EXPECT_EQ(converted.task, Task::kConvert);
  EXPECT_EQ(DumpJson(JobSpecToJson(converted)),
            R"({"task":"convert","model":"tenants/default/models/m","format":["gguf"]})");
  spec.mutable_scheme()->set_bits(3);
  EXPECT_THAT(ToJobSpec(spec), StatusIs(absl::StatusCode::kInvalidArgument,
                                        HasSubstr("bits: 3 goes with a quantization")));
  spec.clear_scheme();
  spec.set_calibration_dataset("tenants/default/datasets/d");
  EXPECT_THAT(ToJobSpec(spec),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("calibration")));
}

TEST(ListenAddressTest, LoopbackOnly) {
  for (const char* good : {"127.0.0.1:0", "127.9.9.9:7433", "localhost:1", "[::1]:7433"}) {
    EXPECT_THAT(ParseListenAddress(good), IsOk()) << good;
  }
  for (const char* open : {"0.0.0.0:7433", "[::]:7433", "10.0.0.1:1", "example.com:1", "*:1"}) {
    EXPECT_THAT(ParseListenAddress(open),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no TLS yet")))
        << open;
  }
  for (const char* bad : {"", "7433", ":7433", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536",
                          "127.0.0.1:-1", "127.0.0.1:x"}) {
    EXPECT_THAT(ParseListenAddress(bad),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("HOST:PORT")))
        << bad;
  }
}

class ModelRootsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_.Write("root/model/config.json", "{}");
    folder_.Write("outside/secret", "s");
    ASSERT_EQ(::symlink("../outside", folder_.Path("root/escape").c_str()), 0);
    ASSERT_EQ(::symlink("model", folder_.Path("root/inside").c_str()), 0);
    ASSERT_EQ(::symlink(folder_.Path("root").c_str(), folder_.Path("alias").c_str()), 0);
  }
  testing::ScratchFolder folder_;
};

TEST_F(ModelRootsTest, LinksAreFollowedAndMustStayBelow) {
  PTQ_ASSERT_OK_AND_ASSIGN(const ModelRoots roots, ModelRoots::Create({folder_.Path("root")}));
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string path, roots.Resolve(folder_.Path("root/inside")));
  EXPECT_EQ(path, folder_.Path("root/model"));
  EXPECT_THAT(roots.Resolve(folder_.Path("root/../root/model")), IsOk());
  for (const char* bad : {"root/escape", "root/escape/secret", "outside", "root/../outside/secret",
                          "outside/absent", "root2"}) {
    EXPECT_THAT(roots.Resolve(folder_.Path(bad)),
                StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("below one of")))
        << bad;
  }
  EXPECT_THAT(roots.Resolve(folder_.Path("root/absent")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("nothing at")));
  EXPECT_THAT(roots.Resolve("root/model"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("absolute")));
  EXPECT_THAT(roots.Resolve(std::string("/a\0b", 4)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("absolute")));
}

TEST_F(ModelRootsTest, ARootMayBeALink) {
  PTQ_ASSERT_OK_AND_ASSIGN(const ModelRoots roots, ModelRoots::Create({folder_.Path("alias")}));
  EXPECT_THAT(roots.Resolve(folder_.Path("alias/model")), IsOk());
  EXPECT_THAT(roots.Resolve(folder_.Path("root/model")), IsOk());
}

TEST_F(ModelRootsTest, WithoutRootsEverythingIsDenied) {
  PTQ_ASSERT_OK_AND_ASSIGN(const ModelRoots roots, ModelRoots::Create({}));
  EXPECT_THAT(roots.Resolve(folder_.Path("root/model")),
              StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("--model-root")));
  EXPECT_THAT(ModelRoots::Create({folder_.Path("absent")}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("is not a folder")));
}

std::string FieldOf(const absl::Status& status) {
  const google::rpc::Status rpc_status = ToRpcStatus(status);
  for (const auto& any : rpc_status.details()) {
    google::rpc::BadRequest bad_request;
    if (any.UnpackTo(&bad_request)) return bad_request.field_violations(0).field();
  }
  return "";
}

TEST(SpecConversionTest, DefaultsAreJobSpecs) {
  v1::QuantizationSpec spec;
  spec.set_model("m");
  spec.set_calibration_dataset("c");
  PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec converted, ToJobSpec(spec));
  JobSpec expected;
  expected.model = "m";
  expected.calibration = "c";
  EXPECT_TRUE(converted == expected);
}

TEST(SpecConversionTest, EveryFieldArrives) {
  v1::QuantizationSpec spec;
  spec.set_model("m");
  spec.set_calibration_dataset("c");
  spec.set_evaluation_dataset("e");
  spec.mutable_auto_round()->set_recipe("best");
  spec.mutable_auto_round()->set_iterations(5);
  spec.mutable_auto_round()->set_batch_size(2);
  spec.mutable_auto_round()->set_fisher_tokens(0);
  spec.mutable_auto_round()->set_tuning_precision("fp8");
  spec.mutable_scheme()->set_bits(3);
  spec.mutable_scheme()->set_group_size(-1);
  spec.mutable_scheme()->set_asymmetric(true);
  spec.set_allow_split_fused_sets(true);
  spec.add_rules()->set_pattern("a:b");
  spec.mutable_rules(0)->set_skip(true);
  spec.add_rules()->set_pattern("c");
  spec.mutable_rules(1)->set_bits(8);
  spec.mutable_rules(1)->set_group_size(32);
  spec.mutable_rules(1)->set_symmetric(true);
  spec.add_output_formats("gptq");
  spec.add_output_formats("affine");
  spec.set_seed(0);
  spec.mutable_calibration()->set_samples(4);
  spec.mutable_calibration()->set_sequence_length(64);
  spec.mutable_evaluation()->set_window(32);
  spec.mutable_evaluation()->set_samples(0);
  spec.mutable_resources()->set_device("cpu");
  spec.mutable_resources()->set_low_memory("on");
  PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec job, ToJobSpec(spec));
  EXPECT_EQ(job.evaluation, "e");
  EXPECT_EQ(job.recipe, TuningRecipe::kBest);
  EXPECT_EQ(job.iterations, 5);
  EXPECT_EQ(job.batch_size, 2);
  EXPECT_EQ(job.fisher_tokens, 0);
  EXPECT_EQ(job.tuning_precision, PrecisionChoice::kFp8);
  EXPECT_EQ(job.bits, 3);
  EXPECT_EQ(job.group_size, -1);
  EXPECT_TRUE(job.asymmetric);
  EXPECT_THAT(job.rule, ElementsAre("a:b:skip", "c:bits=8,group_size=32,symmetric=true"));
  EXPECT_THAT(job.format, ElementsAre("affine", "gptq"));
  EXPECT_TRUE(job.allow_split_fused_sets);
  EXPECT_EQ(job.seed, 0u);
  EXPECT_EQ(job.samples, 4);
  EXPECT_EQ(job.sequence_length, 64);
  EXPECT_EQ(job.evaluation_window, 32);
  EXPECT_EQ(job.evaluation_samples, 0);
  EXPECT_EQ(job.device, DeviceChoice::kCpu);
  EXPECT_EQ(job.low_memory, LowMemory::kOn);
}

TEST(SpecConversionTest, APresetIsItsScheme) {
  v1::QuantizationSpec spec;
  spec.set_model("m");
  spec.mutable_rtn();
  spec.set_preset("W2A16G32");
  PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec job, ToJobSpec(spec));
  EXPECT_EQ(job.preset, "W2A16G32");
  EXPECT_EQ(job.DefaultScheme(), (QuantizationScheme{2, 32, true}));
}

TEST(SpecConversionTest, KQuantsByName) {
  v1::QuantizationSpec spec;
  spec.set_model("m");
  spec.mutable_rtn();
  spec.mutable_scheme()->set_name("Q5_K");
  v1::ModuleRule& rule = *spec.add_rules();
  rule.set_pattern("a");
  rule.set_scheme("Q6_K");
  PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec job, ToJobSpec(spec));
  EXPECT_EQ(job.DefaultScheme(), KQuantScheme(KQuant::kQ5_K));
  EXPECT_EQ(job.rule, (std::vector<std::string>{"a:scheme=Q6_K"}));
}

TEST(SpecConversionTest, EveryRecipeIsKnown) {
  for (const char* name : kRecipeNames) {
    v1::QuantizationSpec spec;
    spec.set_model("m");
    spec.set_calibration_dataset("c");
    spec.mutable_auto_round()->set_recipe(name);
    PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec job, ToJobSpec(spec));
    EXPECT_STREQ(RecipeName(job.recipe), name);
    EXPECT_EQ(job.iterations, 0);
    EXPECT_EQ(job.fisher_tokens, -1);
  }
}

TEST(SpecConversionTest, ErrorsNameTheFieldOfTheRequest) {
  const auto field = [](auto change) {
    v1::QuantizationSpec spec;
    spec.set_model("m");
    spec.mutable_rtn();
    change(spec);
    const auto converted = ToJobSpec(spec);
    EXPECT_EQ(converted.status().code(), absl::StatusCode::kInvalidArgument);
    return FieldOf(converted.status());
  };
  using Spec = v1::QuantizationSpec;
  EXPECT_EQ(field([](Spec& s) { s.mutable_scheme()->set_bits(9); }), "spec.scheme.bits");
  EXPECT_EQ(field([](Spec& s) { s.mutable_scheme()->set_group_size(-2); }),
            "spec.scheme.group_size");
  EXPECT_EQ(field([](Spec& s) { s.mutable_gptq(); }), "spec.calibration_dataset");
  EXPECT_EQ(field([](Spec& s) { s.mutable_rtn()->set_scale_rule("x"); }), "spec.rtn.scale_rule");
  const auto tuning_field = [&](auto change) {
    return field([&](Spec& s) {
      s.set_calibration_dataset("c");
      change(*s.mutable_auto_round());
    });
  };
  EXPECT_EQ(tuning_field([](v1::AutoRound& a) { a.set_recipe("x"); }), "spec.auto_round.recipe");
  EXPECT_EQ(tuning_field([](v1::AutoRound& a) { a.set_iterations(-1); }),
            "spec.auto_round.iterations");
  EXPECT_EQ(tuning_field([](v1::AutoRound& a) { a.set_batch_size(0); }),
            "spec.auto_round.batch_size");
  EXPECT_EQ(tuning_field([](v1::AutoRound& a) { a.set_fisher_tokens(-2); }),
            "spec.auto_round.fisher_tokens");
  EXPECT_EQ(tuning_field([](v1::AutoRound& a) {
              a.set_recipe("paper");
              a.set_fisher_tokens(4096);
            }),
            "spec.auto_round.fisher_tokens");
  EXPECT_EQ(tuning_field([](v1::AutoRound& a) { a.set_tuning_precision("fp16"); }),
            "spec.auto_round.tuning_precision");
  EXPECT_EQ(field([](Spec& s) { s.add_output_formats("onnx"); }), "spec.output_formats");
  EXPECT_EQ(field([](Spec& s) { s.add_rules()->set_pattern("("); }), "spec.rules");
  EXPECT_EQ(field([](Spec& s) { s.set_preset("W9A16"); }), "spec.preset");
  EXPECT_EQ(field([](Spec& s) { s.mutable_scheme()->set_name("Q7_K"); }), "spec.scheme.name");
  EXPECT_EQ(field([](Spec& s) {
              s.mutable_scheme()->set_name("Q4_K");
              s.mutable_scheme()->set_bits(8);
            }),
            "spec.scheme.bits");
  const auto beside_preset = [&](auto change) {
    return field([&](Spec& s) {
      s.set_preset("W4A16");
      change(*s.mutable_scheme());
    });
  };
  // Even where it says the same.
  EXPECT_EQ(beside_preset([](v1::WeightScheme& w) { w.set_bits(4); }), "spec.scheme.bits");
  EXPECT_EQ(beside_preset([](v1::WeightScheme& w) { w.set_group_size(64); }),
            "spec.scheme.group_size");
  EXPECT_EQ(beside_preset([](v1::WeightScheme& w) { w.set_asymmetric(true); }),
            "spec.scheme.asymmetric");
  EXPECT_EQ(beside_preset([](v1::WeightScheme& w) { w.set_name("Q4_K"); }), "spec.scheme.name");
  EXPECT_EQ(field([](Spec& s) { s.mutable_resources()->set_device("tpu"); }),
            "spec.resources.device");
  EXPECT_EQ(field([](Spec& s) { s.mutable_resources()->set_low_memory("off"); }),
            "spec.resources.low_memory");
  EXPECT_EQ(field([](Spec& s) { s.mutable_evaluation()->set_window(1); }),
            "spec.evaluation.window");
  EXPECT_EQ(field([](Spec& s) { s.mutable_failure_policy()->set_max_attempts(-1); }),
            "spec.failure_policy.max_attempts");
  EXPECT_EQ(field([](Spec& s) { s.mutable_max_run_duration()->set_seconds(0); }),
            "spec.max_run_duration");
}

TEST(StatusDetailsTest, AlwaysAnErrorInfoAndAShortMessage) {
  const google::rpc::Status plain = ToRpcStatus(absl::InternalError(std::string(5000, 'x')));
  EXPECT_LE(plain.message().size(), 1024u);
  google::rpc::ErrorInfo info;
  ASSERT_EQ(plain.details_size(), 1);
  ASSERT_TRUE(plain.details(0).UnpackTo(&info));
  EXPECT_EQ(info.reason(), "INTERNAL");
  EXPECT_EQ(info.domain(), "ptq");
  const google::rpc::Status field = ToRpcStatus(InvalidField("bits", "is 9"));
  EXPECT_EQ(field.details_size(), 2);
  EXPECT_EQ(field.message(), "bits: is 9");
}

TEST(ProgressTrackerTest, TheEtaIsTheMeanOfRecentBlocks) {
  ProgressTracker tracker;
  v1::Progress progress;
  JobEvent started;
  started.type = JobEvent::Type::kStarted;
  started.blocks_total = 22;
  started.blocks_resumed = 2;
  tracker.Apply(started, progress);
  EXPECT_EQ(progress.blocks_done(), 2);
  EXPECT_FALSE(progress.has_eta());
  // Five slow blocks, which ten quick ones push out of the window.
  for (int64_t block = 2; block < 17; ++block) {
    JobEvent done;
    done.type = JobEvent::Type::kBlockDone;
    done.block = block;
    done.seconds = block < 7 ? 100 : block == 16 ? 12 : 2;
    tracker.Apply(done, progress);
  }
  EXPECT_EQ(progress.blocks_done(), 17);
  EXPECT_EQ(progress.checkpoint_block(), 17);
  EXPECT_EQ(progress.eta().seconds(), 15) << "5 blocks of (9 * 2 + 12) / 10 s";
  EXPECT_EQ(progress.eta_p90().seconds(), 10) << "9 of 10 took 2 s";
  JobEvent phase;
  phase.type = JobEvent::Type::kPhase;
  phase.phase = "quantize";
  phase.phase_fraction = 0.5;
  tracker.Apply(phase, progress);
  EXPECT_EQ(progress.eta().seconds(), 13) << "4.5 blocks";
}

TEST(ProgressTrackerTest, APhaseBeforeTheBlocksLeavesTheirEstimateAlone) {
  ProgressTracker tracker;
  v1::Progress progress;
  JobEvent event;
  event.type = JobEvent::Type::kStarted;
  event.blocks_total = 4;
  tracker.Apply(event, progress);
  event = {};
  event.type = JobEvent::Type::kPhase;
  event.phase = "fisher";
  event.phase_fraction = 0.75;
  tracker.Apply(event, progress);
  EXPECT_EQ(progress.phase(), "fisher");
  EXPECT_EQ(progress.block_fraction(), 0.75);
  EXPECT_FALSE(progress.has_eta());
  event = {};
  event.type = JobEvent::Type::kBlockDone;
  event.block = 0;
  event.seconds = 10;
  tracker.Apply(event, progress);
  EXPECT_EQ(progress.block_fraction(), 0);
  EXPECT_EQ(progress.eta().seconds(), 30) << "3 blocks, none of them begun by the Fisher pass";
  // A damaged metric is computed again between blocks.
  event = {};
  event.type = JobEvent::Type::kPhase;
  event.phase = "fisher";
  event.phase_fraction = 0.5;
  tracker.Apply(event, progress);
  EXPECT_EQ(progress.eta().seconds(), 30);
}

TEST(JobLogsTest, LinesOfAllAttemptsWithTheirTimes) {
  testing::ScratchFolder folder;
  folder.Write("logs/attempt-0001.log",
               "2026-11-22T17:40:27.123+00:00 W slow disk\nplain words\ncut");
  folder.Write("logs/attempt-0002.log", "\xff\xfe bytes\n");
  JobLogReader reader(folder.path(), 0);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto first, reader.Next(false));
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->severity(), "warning");
  EXPECT_EQ(first->message(), "slow disk");
  EXPECT_EQ(first->time().nanos(), 123'000'000);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto second, reader.Next(false));
  EXPECT_EQ(second->message(), "plain words");
  PTQ_ASSERT_OK_AND_ASSIGN(const auto third, reader.Next(false));
  EXPECT_EQ(third->message(), "cut");
  EXPECT_EQ(third->line(), 3);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto fourth, reader.Next(false));
  EXPECT_EQ(fourth->message(), "?? bytes");
  EXPECT_EQ(fourth->attempt(), 2);
  PTQ_ASSERT_OK_AND_ASSIGN(auto none, reader.Next(true));
  EXPECT_FALSE(none.has_value());
  JobLogReader later(folder.path(), 3);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto skipped, later.Next(false));
  EXPECT_EQ(skipped->line(), 4);
}

TEST(JobLogsTest, AGrowingFileGivesWholeLinesOnly) {
  testing::ScratchFolder folder;
  folder.Write("logs/attempt-0001.log", "one\ntw");
  JobLogReader reader(folder.path(), 0);
  PTQ_ASSERT_OK_AND_ASSIGN(auto entry, reader.Next(false));
  EXPECT_EQ(entry->message(), "one");
  PTQ_ASSERT_OK_AND_ASSIGN(entry, reader.Next(false));
  EXPECT_FALSE(entry.has_value());
  folder.Write("logs/attempt-0001.log", "one\ntwo\n");
  PTQ_ASSERT_OK_AND_ASSIGN(entry, reader.Next(false));
  ASSERT_TRUE(entry.has_value());
  EXPECT_EQ(entry->message(), "two");
  EXPECT_EQ(LastLogLine(folder.Path("logs/attempt-0001.log")), "two");
}

TEST(PageTokenTest, GoodForItsListAlone) {
  PageTokens tokens("secret");
  v1::ListRequest request;
  request.set_parent("tenants/default");
  request.set_filter("state = FAILED");
  request.set_page_token(tokens.Encode("jobs", request, "cursor"));
  PTQ_ASSERT_OK_AND_ASSIGN(const auto cursor, tokens.Decode("jobs", request));
  EXPECT_EQ(cursor, "cursor");
  request.set_page_size(7);
  EXPECT_THAT(tokens.Decode("jobs", request), IsOk()) << "the size may change between pages";
  EXPECT_THAT(tokens.Decode("models", request),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("page_token")));
  EXPECT_THAT(PageTokens("other").Decode("jobs", request),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("page_token")));
  v1::ListRequest changed = request;
  changed.set_filter("");
  EXPECT_THAT(tokens.Decode("jobs", changed),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("page_token")));
  for (const char* bad : {"x", "!!!", "AAAAAAAAAAAAAAAAAAAAAAAAAAAA"}) {
    changed = request;
    changed.set_page_token(bad);
    EXPECT_THAT(tokens.Decode("jobs", changed),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("page_token")))
        << bad;
  }
}

TEST(ReportConversionTest, FieldsOfTheReport) {
  const std::string json =
      R"({"evaluation": {"baseline": {"perplexity": 8.5}, "quantized": {"perplexity": 9, )"
      R"("mean_kld": 0.05, "top1_agreement": 0.9}}, "size": {"bits_per_weight": 4.125}, )"
      R"("blocks": [{"modules": [{"name": "a", "output_mse": 1, "tokens": 2048, "damping": 0.03, )"
      R"("fallback_reason": null}]}], )"
      R"("outside_of_blocks": [{"name": "lm_head", "fallback_reason": "head: opt-rtn"}]})";
  v1::QuantizationReport report;
  ASSERT_THAT(FillReport(json, report), IsOk());
  EXPECT_EQ(report.report_json(), json);
  EXPECT_EQ(report.baseline_perplexity(), 8.5);
  EXPECT_EQ(report.divergence().mean_kld(), 0.05);
  EXPECT_EQ(report.bits_per_weight(), 4.125);
  ASSERT_EQ(report.modules_size(), 2);
  EXPECT_EQ(report.modules(0).module(), "a");
  EXPECT_EQ(report.modules(0).tokens_seen(), 2048);
  EXPECT_EQ(report.modules(0).damping_used(), 0.03);
  EXPECT_EQ(report.modules(1).module(), "lm_head");
  EXPECT_EQ(report.modules(1).fallback_reason(), "head: opt-rtn");
  v1::QuantizationReport without;
  ASSERT_THAT(FillReport(R"({"evaluation": null})", without), IsOk());
  EXPECT_FALSE(without.has_divergence());
  EXPECT_THAT(FillReport("[]", without),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("report.json")));
}

}  // namespace
}  // namespace ptq
