// job.json: the flags' names, defaults and ranges; what is wrong is named.
#include "worker/spec/job_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "common/status_macros.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::IsOk;
using ::testing::StartsWith;
using testing::StatusIs;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

JobSpec GoodSpec() {
  JobSpec spec;
  spec.model = "/models/m";
  spec.calibration = "/data/c.jsonl";
  return spec;
}

TEST(JobSpecTest, JsonHasEveryKeyInOrderWithItsDefault) {
  JobSpec spec;
  spec.model = "m";
  EXPECT_EQ(
      DumpJson(JobSpecToJson(spec)),
      R"({"model":"m","calibration":"","evaluation":"","algorithm":"auto-round","preset":"","scheme":"","bits":4,)"
      R"("group_size":128,"asymmetric":false,"scale_rule":"full-range","recipe":"default",)"
      R"("iterations":0,"batch_size":8,"fisher_tokens":-1,"tuning_precision":"auto",)"
      R"("samples":128,"sequence_length":2048,"seed":42,"device":"auto",)"
      R"("low_memory":"auto","evaluation_window":0,"evaluation_samples":128,"format":["affine"],"rule":[],)"
      R"("allow_split_fused_sets":false})");
}

TEST(JobSpecTest, EveryFieldSurvivesTheRoundTrip) {
  JobSpec spec;
  spec.model = "/models/größe";
  spec.calibration = "c.txt";
  spec.evaluation = "e.txt";
  spec.algorithm = Algorithm::kOptRtn;
  spec.bits = 3;
  spec.group_size = -1;
  spec.asymmetric = true;
  spec.scale_rule = ScaleRule::kTorchao;
  spec.recipe = TuningRecipe::kBest;
  spec.iterations = 7;
  spec.batch_size = 2;
  spec.fisher_tokens = 4096;
  spec.tuning_precision = PrecisionChoice::kFp8;
  spec.samples = 5;
  spec.sequence_length = 64;
  spec.seed = ~uint64_t{0};
  spec.device = DeviceChoice::kCuda;
  spec.low_memory = LowMemory::kOn;
  spec.evaluation_window = 32;
  spec.evaluation_samples = 0;
  spec.format = {"gptq", "dequantized"};
  spec.rule = {"a.*:skip", "b:bits=8"};
  spec.allow_split_fused_sets = true;
  // Both from the document in memory and from its text.
  PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec from_json, JobSpecFromJson(JobSpecToJson(spec)));
  EXPECT_EQ(from_json, spec);
  PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec from_text,
                           ParseJobSpec(DumpJsonPretty(JobSpecToJson(spec))));
  EXPECT_EQ(from_text, spec);
}

TEST(JobSpecTest, AConversionHasAModelAndFormats) {
  constexpr char kText[] = R"({"task":"convert","model":"m","format":["gptq","gguf"]})";
  PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec spec, ParseJobSpec(kText));
  EXPECT_EQ(spec.task, Task::kConvert);
  EXPECT_EQ(DumpJson(JobSpecToJson(spec)), kText);
  EXPECT_THAT(ValidateJobSpec(spec), IsOk());
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, std::string>>{{"calibration", "\"c.txt\""},
                                                        {"algorithm", "\"gptq\""},
                                                        {"bits", "8"},
                                                        {"rule", "[\"x:skip\"]"},
                                                        {"seed", "7"},
                                                        {"preset", "\"W4A16_ASYM\""},
                                                        {"device", "\"cuda\""}}) {
    PTQ_ASSERT_OK_AND_ASSIGN(
        const JobSpec other,
        ParseJobSpec("{\"task\":\"convert\",\"model\":\"m\",\"" + key + "\":" + value + "}"));
    EXPECT_THAT(ValidateJobSpec(other),
                StatusIs(kInvalid, AllOf(StartsWith(key + ": "), HasSubstr("leave it out"))));
  }
  EXPECT_THAT(ParseJobSpec(R"({"task":"train","model":"m"})"),
              StatusIs(kInvalid, HasSubstr("task: \"train\" is none of quantize, convert")));
}

TEST(JobSpecTest, AbsentKeysHaveDefaults) {
  PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec spec, ParseJobSpec(R"({"model":"m","bits":2})"));
  JobSpec expected;
  expected.model = "m";
  expected.bits = 2;
  EXPECT_EQ(spec, expected);
  EXPECT_THAT(ParseJobSpec("{}"), StatusIs(kInvalid, StartsWith("model: missing")));
}

TEST(JobSpecTest, PresetSetsTheSchemeThatTheRestLeavesOpen) {
  PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec spec,
                           ParseJobSpec(R"({"model":"m","preset":"w2a16g64","rule":["x:skip"]})"));
  EXPECT_EQ(spec.preset, "W2A16G64");
  EXPECT_EQ(spec.bits, 2);
  EXPECT_EQ(spec.group_size, 64);
  EXPECT_FALSE(spec.asymmetric);
  EXPECT_EQ(spec.rule, (std::vector<std::string>{"x:skip"}));
  // What it writes it reads.
  PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec again, JobSpecFromJson(JobSpecToJson(spec)));
  EXPECT_EQ(again, spec);
  PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec asymmetric,
                           ParseJobSpec(R"({"model":"m","preset":"W4A16_ASYM"})"));
  EXPECT_TRUE(asymmetric.asymmetric);
}

TEST(JobSpecTest, RefusesAnotherSchemeBesideAPreset) {
  EXPECT_THAT(ParseJobSpec(R"({"model":"m","preset":"W4A16","bits":8})"),
              StatusIs(kInvalid, HasSubstr("bits: 8 stands against preset W4A16, which sets 4")));
  EXPECT_THAT(ParseJobSpec(R"({"model":"m","preset":"W4A16","group_size":64})"),
              StatusIs(kInvalid, HasSubstr("group_size: 64 stands against preset W4A16")));
  EXPECT_THAT(ParseJobSpec(R"({"model":"m","preset":"W4A16","asymmetric":true})"),
              StatusIs(kInvalid, HasSubstr("asymmetric: true stands against preset W4A16")));
  EXPECT_THAT(ParseJobSpec(R"({"model":"m","preset":"W9A16"})"),
              StatusIs(kInvalid, HasSubstr("preset: \"W9A16\" is none of W8A16, W6A16, W4A16")));
  JobSpec spec = GoodSpec();
  spec.preset = "W4A16";
  spec.bits = 3;
  EXPECT_THAT(ValidateJobSpec(spec), StatusIs(kInvalid, StartsWith("bits: 3")));
}

TEST(JobSpecTest, AKQuantSetsTheScheme) {
  PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec spec,
                           ParseJobSpec(R"({"model":"m","scheme":"q4_k","algorithm":"rtn"})"));
  EXPECT_EQ(spec.DefaultScheme(), KQuantScheme(KQuant::kQ4_K));
  EXPECT_EQ(spec.bits, 4);
  EXPECT_EQ(spec.group_size, 32);
  EXPECT_TRUE(spec.asymmetric);
  EXPECT_THAT(ValidateJobSpec(spec), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec again, JobSpecFromJson(JobSpecToJson(spec)));
  EXPECT_EQ(again, spec);
  PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec mix, ParseJobSpec(R"({"model":"m","preset":"q3_k_m"})"));
  EXPECT_EQ(mix.DefaultScheme(), KQuantScheme(KQuant::kQ3_K));
  PTQ_ASSERT_OK_AND_ASSIGN(const JobSpec mix_again, JobSpecFromJson(JobSpecToJson(mix)));
  EXPECT_EQ(mix_again, mix);
}

TEST(JobSpecTest, WhatAKQuantDoesNotGoWith) {
  EXPECT_THAT(ParseJobSpec(R"({"model":"m","scheme":"Q4_K","bits":8})"),
              StatusIs(kInvalid, HasSubstr("bits: 8 stands against scheme Q4_K, which sets 4")));
  EXPECT_THAT(ParseJobSpec(R"({"model":"m","scheme":"Q4_K","preset":"W4A16"})"),
              StatusIs(kInvalid, HasSubstr("scheme: Q4_K stands against preset W4A16")));
  EXPECT_THAT(ParseJobSpec(R"({"model":"m","scheme":"Q4_0"})"),
              StatusIs(kInvalid, HasSubstr("scheme: \"Q4_0\" is none of Q2_K")));
  JobSpec spec = GoodSpec();
  spec.rule = {"a:scheme=Q4_K"};
  spec.algorithm = Algorithm::kAutoRound;
  spec.calibration = "c.txt";
  EXPECT_THAT(ValidateJobSpec(spec),
              StatusIs(kInvalid, HasSubstr("auto-round tunes no K-quants; choose algorithm gptq")));
  spec.algorithm = Algorithm::kRtn;
  EXPECT_THAT(ValidateJobSpec(spec), IsOk());
  spec.scale_rule = ScaleRule::kTorchao;
  EXPECT_THAT(ValidateJobSpec(spec), StatusIs(kInvalid, HasSubstr("not by torchao's rule")));
  spec = GoodSpec();
  spec.algorithm = Algorithm::kRtn;
  ASSERT_THAT(UseScheme("Q4_K", &spec), IsOk());
  spec.rule = {"a:bits=8"};
  EXPECT_THAT(ValidateJobSpec(spec),
              StatusIs(kInvalid, HasSubstr("a rule names both bits= and group_size=, or scheme=")));
  spec.rule = {"a:bits=8,group_size=32"};
  EXPECT_THAT(ValidateJobSpec(spec), IsOk());
}

TEST(JobSpecTest, RefusesUnknownAndRepeatedKeys) {
  EXPECT_THAT(ParseJobSpec(R"({"model":"m","group-size":64})"),
              StatusIs(kInvalid, HasSubstr("unknown key \"group-size\"")));
  EXPECT_THAT(ParseJobSpec(R"({"model":"m","bits":4,"bits":8})"),
              StatusIs(kInvalid, HasSubstr("\"bits\" is repeated")));
  EXPECT_THAT(ParseJobSpec("[]"), StatusIs(kInvalid, HasSubstr("not a JSON object")));
  EXPECT_THAT(ParseJobSpec("{"), StatusIs(kInvalid, HasSubstr("JSON")));
}

TEST(JobSpecTest, RefusesWrongTypesByKey) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"model", "1"},
      {"calibration", "null"},
      {"evaluation", "[]"},
      {"algorithm", "\"magic\""},
      {"bits", "\"4\""},
      {"bits", "4.0"},
      {"bits", "4294967300"},
      {"group_size", "true"},
      {"asymmetric", "1"},
      {"scale_rule", "\"x\""},
      {"recipe", "\"quick\""},
      {"recipe", "2"},
      {"iterations", "1e2"},
      {"batch_size", "null"},
      {"fisher_tokens", "\"all\""},
      {"tuning_precision", "\"fp16\""},
      {"tuning_precision", "8"},
      {"low_memory", "\"off\""},
      {"samples", "{}"},
      {"samples", "9223372036854775808"},
      {"sequence_length", "\"\""},
      {"seed", "-1"},
      {"seed", "1.5"},
      {"device", "\"gpu\""},
      {"evaluation_window", "[1]"},
      {"evaluation_samples", "false"},
      {"format", "\"onnx\""},
      {"rule", "\"a:skip\""},
      {"rule", "[1]"}};
  for (const auto& [key, value] : cases) {
    EXPECT_THAT(ParseJobSpec("{\"" + key + "\":" + value + "}"),
                StatusIs(kInvalid, StartsWith(key + ": ")))
        << key << " " << value;
  }
}

TEST(JobSpecTest, FormatsHaveOneForm) {
  const auto formats = [](const std::string& json) -> absl::StatusOr<Json> {
    PTQ_ASSIGN_OR_RETURN(const JobSpec spec,
                         ParseJobSpec(R"({"model":"m","format":)" + json + "}"));
    return JobSpecToJson(spec)["format"];
  };
  for (const char* same : {R"("gptq,affine")", R"("affine,gptq")", R"(["gptq","affine"])"}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const Json json, formats(same));
    EXPECT_EQ(DumpJson(json), R"(["affine","gptq"])") << same;
  }
  for (const char* name : kOutputFormatNames) {
    PTQ_ASSERT_OK_AND_ASSIGN(const Json json, formats("\"" + std::string(name) + "\""));
    EXPECT_EQ(json, Json::array({name}));
  }
  EXPECT_THAT(formats(R"("onnx")"), StatusIs(kInvalid, HasSubstr("compressed-tensors")));
  EXPECT_THAT(formats(R"("gptq,gptq")"), StatusIs(kInvalid, HasSubstr("gptq is named twice")));
  EXPECT_THAT(formats("[]"), StatusIs(kInvalid, HasSubstr("at least one")));
  EXPECT_THAT(formats("[1]"), StatusIs(kInvalid, StartsWith("format: ")));
}

TEST(JobSpecTest, NamesAreTheFlagsValues) {
  for (const char* name : {"auto-round", "gptq", "opt-rtn", "rtn"}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const Algorithm algorithm, ParseAlgorithm(name));
    EXPECT_STREQ(AlgorithmName(algorithm), name);
  }
  for (const char* name : {"auto", "cpu", "cuda"}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const DeviceChoice device, ParseDevice(name));
    EXPECT_STREQ(DeviceName(device), name);
  }
  for (const char* name : {"full-range", "torchao"}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const ScaleRule rule, ParseScaleRule(name));
    EXPECT_STREQ(ScaleRuleName(rule), name);
  }
  for (const char* name : {"paper", "fast", "default", "best"}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const TuningRecipe recipe, ParseRecipe(name));
    EXPECT_STREQ(RecipeName(recipe), name);
  }
  for (const char* name : {"auto", "bf16", "fp8"}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const PrecisionChoice precision, ParsePrecision(name));
    EXPECT_STREQ(PrecisionName(precision), name);
  }
  for (const char* name : {"auto", "on"}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const LowMemory choice, ParseLowMemory(name));
    EXPECT_STREQ(LowMemoryName(choice), name);
  }
  EXPECT_THAT(ParseAlgorithm("AWQ"),
              StatusIs(kInvalid, "\"AWQ\" is none of auto-round, gptq, opt-rtn, rtn"));
  EXPECT_EQ(*ParseAlgorithm("auto-round"), Algorithm::kAutoRound);
  EXPECT_EQ(*ParseScaleRule("torchao"), ScaleRule::kTorchao);
  EXPECT_EQ(*ParseRecipe("best"), TuningRecipe::kBest);
  EXPECT_EQ(*ParsePrecision("bf16"), PrecisionChoice::kBf16);
  EXPECT_THAT(ParseRecipe("Paper"),
              StatusIs(kInvalid, "\"Paper\" is none of paper, fast, default, best"));
}

TEST(JobSpecTest, ARecipeHasItsIterationsUnlessTheSpecNamesThem) {
  JobSpec spec;
  EXPECT_EQ(spec.EffectiveIterations(), 60);
  spec.recipe = TuningRecipe::kPaper;
  EXPECT_EQ(spec.EffectiveIterations(), 200);
  spec.recipe = TuningRecipe::kFast;
  EXPECT_EQ(spec.EffectiveIterations(), 20);
  spec.recipe = TuningRecipe::kBest;
  EXPECT_EQ(spec.EffectiveIterations(), 100);
  spec.iterations = 7;
  EXPECT_EQ(spec.EffectiveIterations(), 7);
}

TEST(ValidateJobSpecTest, AcceptsTheDefaultsAndTheEdges) {
  EXPECT_THAT(ValidateJobSpec(GoodSpec()), IsOk());
  JobSpec spec = GoodSpec();
  spec.group_size = 0;
  spec.bits = 8;
  spec.iterations = spec.batch_size = spec.samples = spec.sequence_length = 1;
  EXPECT_THAT(ValidateJobSpec(spec), IsOk());
  spec.fisher_tokens = 0;
  EXPECT_THAT(ValidateJobSpec(spec), IsOk());
  spec.fisher_tokens = int64_t{1} << 36;
  EXPECT_THAT(ValidateJobSpec(spec), IsOk());
  spec = GoodSpec();
  spec.recipe = TuningRecipe::kPaper;
  EXPECT_THAT(ValidateJobSpec(spec), IsOk());
  spec.tuning_precision = PrecisionChoice::kFp8;
  EXPECT_THAT(ValidateJobSpec(spec), IsOk());
  spec = GoodSpec();
  spec.algorithm = Algorithm::kRtn;
  spec.calibration.clear();
  spec.asymmetric = true;
  spec.scale_rule = ScaleRule::kTorchao;
  EXPECT_THAT(ValidateJobSpec(spec), IsOk());
}

TEST(ValidateJobSpecTest, RefusesValuesOutOfRange) {
  const auto expect_refused = [](void (*change)(JobSpec*), const std::string& message) {
    JobSpec spec = GoodSpec();
    change(&spec);
    EXPECT_THAT(ValidateJobSpec(spec), StatusIs(kInvalid, HasSubstr(message)));
  };
  expect_refused([](JobSpec* s) { s->bits = 1; }, "bits: 1 is not in 2..8");
  expect_refused([](JobSpec* s) { s->bits = 9; }, "bits: 9 is not in 2..8");
  expect_refused([](JobSpec* s) { s->bits = 0; }, "bits: 0 ");
  expect_refused([](JobSpec* s) { s->group_size = -2; }, "group_size: -2 ");
  expect_refused([](JobSpec* s) { s->group_size = INT64_MAX; }, "group_size: 9223372036854775807 ");
  expect_refused([](JobSpec* s) { s->iterations = -1; }, "iterations: -1 ");
  expect_refused([](JobSpec* s) { s->iterations = 1'000'001; }, "iterations: 1000001 ");
  expect_refused([](JobSpec* s) { s->batch_size = 0; }, "batch_size: 0 ");
  expect_refused([](JobSpec* s) { s->fisher_tokens = -2; }, "fisher_tokens: -2 is neither -1 ");
  expect_refused([](JobSpec* s) { s->fisher_tokens = (int64_t{1} << 36) + 1; },
                 "fisher_tokens: 68719476737 ");
  expect_refused([](JobSpec* s) { s->samples = 0; }, "samples: 0 ");
  expect_refused([](JobSpec* s) { s->samples = INT64_MAX; }, "samples: 9223372036854775807 ");
  expect_refused([](JobSpec* s) { s->sequence_length = 0; }, "sequence_length: 0 ");
  expect_refused([](JobSpec* s) { s->samples = s->sequence_length = 1 << 20; }, "samples: ");
  expect_refused([](JobSpec* s) { s->evaluation_window = -1; }, "evaluation_window: -1 ");
  expect_refused([](JobSpec* s) { s->evaluation_window = 1; }, "evaluation_window: 1 ");
  expect_refused([](JobSpec* s) { s->evaluation_samples = -1; }, "evaluation_samples: -1 ");
  expect_refused(
      [](JobSpec* s) {
        s->sequence_length = 1;
        s->evaluation = "e.txt";
      },
      "evaluation_window: ");
}

TEST(ValidateJobSpecTest, EveryAlgorithmButRtnNeedsCalibration) {
  for (const Algorithm algorithm : {Algorithm::kAutoRound, Algorithm::kGptq, Algorithm::kOptRtn}) {
    JobSpec spec = GoodSpec();
    spec.algorithm = algorithm;
    spec.calibration.clear();
    EXPECT_THAT(ValidateJobSpec(spec),
                StatusIs(kInvalid, AllOf(StartsWith("calibration: "), HasSubstr("--calibration"),
                                         HasSubstr(AlgorithmName(algorithm)))));
  }
}

TEST(ValidateJobSpecTest, TorchaosScaleRuleGoesWithRtnAlone) {
  for (const Algorithm algorithm : {Algorithm::kAutoRound, Algorithm::kGptq, Algorithm::kOptRtn}) {
    JobSpec spec = GoodSpec();
    spec.algorithm = algorithm;
    spec.scale_rule = ScaleRule::kTorchao;
    EXPECT_THAT(ValidateJobSpec(spec), StatusIs(kInvalid, StartsWith("scale_rule: torchao")));
  }
}

TEST(ValidateJobSpecTest, AutoRoundsOptionsGoWithAutoRoundAlone) {
  const std::vector<std::pair<void (*)(JobSpec*), std::string>> cases = {
      {[](JobSpec* s) { s->recipe = TuningRecipe::kPaper; }, "recipe: paper "},
      {[](JobSpec* s) { s->iterations = 5; }, "iterations: 5 "},
      {[](JobSpec* s) { s->batch_size = 4; }, "batch_size: 4 "},
      {[](JobSpec* s) { s->fisher_tokens = 0; }, "fisher_tokens: 0 "},
      {[](JobSpec* s) { s->tuning_precision = PrecisionChoice::kBf16; },
       "tuning_precision: bf16 "}};
  for (const auto& [change, start] : cases) {
    JobSpec spec = GoodSpec();
    change(&spec);
    EXPECT_THAT(ValidateJobSpec(spec), IsOk()) << start;
    for (const Algorithm algorithm : {Algorithm::kGptq, Algorithm::kOptRtn, Algorithm::kRtn}) {
      spec.algorithm = algorithm;
      EXPECT_THAT(ValidateJobSpec(spec),
                  StatusIs(kInvalid, start + "goes with algorithm auto-round alone, not with " +
                                         AlgorithmName(algorithm) +
                                         "; leave it out or choose algorithm auto-round"));
    }
  }
}

TEST(ValidateJobSpecTest, ThePapersRecipeHasNoFisherMetric) {
  JobSpec spec = GoodSpec();
  spec.recipe = TuningRecipe::kPaper;
  for (const int64_t tokens : {0, 4096}) {
    spec.fisher_tokens = tokens;
    EXPECT_THAT(ValidateJobSpec(spec),
                StatusIs(kInvalid, StartsWith("fisher_tokens: the paper's recipe has no Fisher "
                                              "metric; ")));
  }
}

TEST(ValidateJobSpecTest, ChecksRules) {
  JobSpec spec = GoodSpec();
  spec.rule = {"a:skip", "(:bits=8"};
  EXPECT_THAT(ValidateJobSpec(spec), StatusIs(kInvalid, HasSubstr("rule \"(:bits=8\"")));
  spec.rule.assign(100'000, "a:skip");
  EXPECT_THAT(ValidateJobSpec(spec), StatusIs(kInvalid, HasSubstr("100000 rules")));
}

}  // namespace
}  // namespace ptq
