// Every job flag reaches its field of the API.
#include "client/job_flags.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <functional>
#include <utility>

#include "client/commands/command.h"
#include "client/completion.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::ptq::testing::IsOk;
using ::ptq::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

JobFlags Parse(std::vector<std::string> arguments) {
  CLI::App app;
  JobFlags flags;
  AddJobFlags(app, flags);
  arguments.insert(arguments.begin(), "model");
  std::reverse(arguments.begin(), arguments.end());
  app.parse(arguments);
  return flags;
}

v1::CreateQuantizationJobRequest Request(std::vector<std::string> arguments) {
  const auto request = MakeJobRequest(Parse(std::move(arguments)), {"m", "c", "e"});
  EXPECT_THAT(request, IsOk());
  return *request;
}

TEST(JobFlagsTest, DefaultsAreTheDocumentedOnes) {
  const v1::CreateQuantizationJobRequest request = Request({});
  const v1::QuantizationSpec& spec = request.spec();
  EXPECT_EQ(request.parent(), "tenants/default");
  EXPECT_EQ(request.request_id().size(), 36u);
  EXPECT_EQ(spec.model(), "m");
  EXPECT_EQ(spec.calibration_dataset(), "c");
  EXPECT_EQ(spec.evaluation_dataset(), "e");
  EXPECT_EQ(spec.auto_round().recipe(), "default");
  EXPECT_EQ(spec.auto_round().iterations(), 60);
  EXPECT_EQ(spec.auto_round().batch_size(), 8);
  EXPECT_EQ(spec.auto_round().fisher_tokens(), -1);
  EXPECT_EQ(spec.auto_round().tuning_precision(), "auto");
  EXPECT_EQ(spec.scheme().bits(), 4);
  EXPECT_EQ(spec.scheme().group_size(), 128);
  EXPECT_FALSE(spec.scheme().asymmetric());
  EXPECT_THAT(spec.output_formats(), ElementsAre("affine"));
  EXPECT_EQ(spec.seed(), 42u);
  EXPECT_EQ(spec.resources().device(), "auto");
  EXPECT_EQ(spec.resources().low_memory(), "auto");
  EXPECT_EQ(spec.cache_policy(), v1::REUSE);
  EXPECT_EQ(spec.calibration().samples(), 128);
  EXPECT_EQ(spec.calibration().sequence_length(), 2048);
  EXPECT_FALSE(spec.evaluation().has_window());
  EXPECT_EQ(spec.evaluation().samples(), 128);
  EXPECT_EQ(spec.rules_size(), 0);
  EXPECT_FALSE(request.validate_only());
}

struct FlagCase {
  std::vector<std::string> arguments;
  std::function<void(v1::CreateQuantizationJobRequest&)> change;  // of the defaults' request
};

class JobFlagTest : public ::testing::TestWithParam<FlagCase> {};

TEST_P(JobFlagTest, ChangesItsFieldAndNoOther) {
  v1::CreateQuantizationJobRequest expected = Request({});
  expected.set_request_id("");
  GetParam().change(expected);
  v1::CreateQuantizationJobRequest request = Request(GetParam().arguments);
  if (expected.request_id().empty()) request.set_request_id("");
  std::string difference;
  google::protobuf::util::MessageDifferencer differencer;
  differencer.ReportDifferencesToString(&difference);
  EXPECT_TRUE(differencer.Compare(expected, request)) << difference;
}

using R = v1::CreateQuantizationJobRequest;
constexpr char kUuid[] = "6f1c1c52-6a3e-4c1f-9d0b-0d6c1d1c8a11";
INSTANTIATE_TEST_SUITE_P(
    Flags, JobFlagTest,
    ::testing::Values(
        FlagCase{{"--algorithm", "gptq"}, [](R& r) { r.mutable_spec()->mutable_gptq(); }},
        FlagCase{{"--algorithm", "opt-rtn"}, [](R& r) { r.mutable_spec()->mutable_opt_rtn(); }},
        FlagCase{{"--algorithm", "rtn"},
                 [](R& r) { r.mutable_spec()->mutable_rtn()->set_scale_rule("full-range"); }},
        FlagCase{{"--algorithm", "rtn", "--scale-rule", "torchao"},
                 [](R& r) { r.mutable_spec()->mutable_rtn()->set_scale_rule("torchao"); }},
        FlagCase{{"--bits", "3"}, [](R& r) { r.mutable_spec()->mutable_scheme()->set_bits(3); }},
        FlagCase{{"--group-size", "-1"},
                 [](R& r) { r.mutable_spec()->mutable_scheme()->set_group_size(-1); }},
        FlagCase{{"--asymmetric"},
                 [](R& r) { r.mutable_spec()->mutable_scheme()->set_asymmetric(true); }},
        // A recipe has its number of steps.
        FlagCase{{"--recipe", "paper"},
                 [](R& r) {
                   r.mutable_spec()->mutable_auto_round()->set_recipe("paper");
                   r.mutable_spec()->mutable_auto_round()->set_iterations(200);
                 }},
        FlagCase{{"--recipe", "best", "--iterations", "60"},
                 [](R& r) { r.mutable_spec()->mutable_auto_round()->set_recipe("best"); }},
        FlagCase{{"--fisher-tokens", "0"},
                 [](R& r) { r.mutable_spec()->mutable_auto_round()->set_fisher_tokens(0); }},
        FlagCase{{"--fisher-tokens", "-1"}, [](R&) {}}, FlagCase{{"--iterations", "0"}, [](R&) {}},
        FlagCase{{"--tuning-precision", "fp8"},
                 [](R& r) { r.mutable_spec()->mutable_auto_round()->set_tuning_precision("fp8"); }},
        FlagCase{{"--iterations", "7"},
                 [](R& r) { r.mutable_spec()->mutable_auto_round()->set_iterations(7); }},
        FlagCase{{"--batch-size", "2"},
                 [](R& r) { r.mutable_spec()->mutable_auto_round()->set_batch_size(2); }},
        FlagCase{{"--samples", "16"},
                 [](R& r) { r.mutable_spec()->mutable_calibration()->set_samples(16); }},
        FlagCase{{"--sequence-length", "512"},
                 [](R& r) { r.mutable_spec()->mutable_calibration()->set_sequence_length(512); }},
        FlagCase{{"--seed", "18446744073709551615"},
                 [](R& r) { r.mutable_spec()->set_seed(UINT64_MAX); }},
        FlagCase{{"--device", "cuda"},
                 [](R& r) { r.mutable_spec()->mutable_resources()->set_device("cuda"); }},
        FlagCase{{"--low-memory", "on"},
                 [](R& r) { r.mutable_spec()->mutable_resources()->set_low_memory("on"); }},
        FlagCase{{"--evaluation-window", "256"},
                 [](R& r) { r.mutable_spec()->mutable_evaluation()->set_window(256); }},
        FlagCase{{"--evaluation-samples", "0"},
                 [](R& r) { r.mutable_spec()->mutable_evaluation()->set_samples(0); }},
        FlagCase{{"--format", "dequantized"},
                 [](R& r) { r.mutable_spec()->set_output_formats(0, "dequantized"); }},
        FlagCase{{"--format", "gptq,affine"},
                 [](R& r) { r.mutable_spec()->add_output_formats("gptq"); }},
        FlagCase{{"--rule", ".*k:v_proj:bits=8,group_size=32,symmetric=false", "--rule", "x:skip"},
                 [](R& r) {
                   v1::ModuleRule* rule = r.mutable_spec()->add_rules();
                   rule->set_pattern(".*k:v_proj");
                   rule->set_bits(8);
                   rule->set_group_size(32);
                   rule->set_symmetric(false);
                   rule = r.mutable_spec()->add_rules();
                   rule->set_pattern("x");
                   rule->set_skip(true);
                 }},
        FlagCase{{"--allow-split-fused-sets"},
                 [](R& r) { r.mutable_spec()->set_allow_split_fused_sets(true); }},
        FlagCase{{"--preset", "w4a16_asym"},
                 [](R& r) {
                   r.mutable_spec()->set_preset("W4A16_ASYM");
                   r.mutable_spec()->clear_scheme();
                 }},
        FlagCase{{"--scheme", "q4_k"},
                 [](R& r) {
                   r.mutable_spec()->clear_scheme();
                   r.mutable_spec()->mutable_scheme()->set_name("Q4_K");
                 }},
        FlagCase{{"--label", "team=nlp", "--label", "x=a=b"},
                 [](R& r) {
                   (*r.mutable_labels())["team"] = "nlp";
                   (*r.mutable_labels())["x"] = "a=b";
                 }},
        FlagCase{{"--request-id", kUuid}, [](R& r) { r.set_request_id(kUuid); }},
        FlagCase{{"--validate-only"}, [](R& r) { r.set_validate_only(true); }},
        FlagCase{{"--no-reuse"},
                 [](R& r) { r.mutable_spec()->set_cache_policy(v1::SKIP_LOOKUP); }}));

TEST(JobFlagsTest, PathsAndServerPathStayWithTheClient) {
  const JobFlags flags =
      Parse({"--calibration", "c.jsonl", "--evaluation", "e.txt", "--server-path"});
  EXPECT_EQ(flags.spec.model, "model");
  EXPECT_EQ(flags.spec.calibration, "c.jsonl");
  EXPECT_EQ(flags.spec.evaluation, "e.txt");
  EXPECT_TRUE(flags.server_path);
}

TEST(JobFlagsTest, WrongValuesNameTheFlag) {
  EXPECT_THAT(ValidateJobFlags(Parse({"--algorithm", "rtn", "--bits", "9"})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--bits: 9")));
  EXPECT_THAT(ValidateJobFlags(Parse({})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--calibration")));
  EXPECT_THAT(ValidateJobFlags(Parse({"--algorithm", "rtn", "--rule", "nonsense"})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--rule")));
  EXPECT_THAT(ValidateJobFlags(Parse({"--algorithm", "rtn", "--label", "novalue"})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("KEY=VALUE")));
  EXPECT_THAT(ValidateJobFlags(Parse({"--algorithm", "rtn", "--request-id", "7"})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("UUID")));
  EXPECT_THAT(
      ValidateJobFlags(Parse({"--calibration", "c.txt", "--fisher-tokens", "-2"})),
      StatusIs(absl::StatusCode::kInvalidArgument, StartsWith("--fisher-tokens: -2 is neither")));
  EXPECT_THAT(ValidateJobFlags(Parse(
                  {"--calibration", "c.txt", "--recipe", "paper", "--fisher-tokens", "4096"})),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       StartsWith("--fisher-tokens: the paper's recipe has no Fisher metric")));
  EXPECT_THROW(Parse({"--algorithm", "magic"}), CLI::ValidationError);
  EXPECT_THROW(Parse({"--recipe", "quick"}), CLI::ValidationError);
  EXPECT_THROW(Parse({"--tuning-precision", "fp16"}), CLI::ValidationError);
  EXPECT_THROW(Parse({"--unknown"}), CLI::ParseError);
}

TEST(JobFlagsTest, AutoRoundsFlagsAreRefusedForOtherAlgorithms) {
  const std::vector<std::pair<std::string, std::string>> flags = {{"--recipe", "best"},
                                                                  {"--iterations", "7"},
                                                                  {"--batch-size", "2"},
                                                                  {"--fisher-tokens", "0"},
                                                                  {"--tuning-precision", "bf16"}};
  for (const auto& [flag, value] : flags) {
    EXPECT_THAT(ValidateJobFlags(Parse({"--algorithm", "rtn", flag, value})),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         flag + ": " + value +
                             " goes with algorithm auto-round alone, not with rtn; leave it out "
                             "or choose algorithm auto-round"));
    EXPECT_THAT(ValidateJobFlags(Parse({"--calibration", "c.txt", flag, value})), IsOk());
  }
}

TEST(JobFlagsTest, AConversionIsAModelAndFormats) {
  CLI::App app;
  JobFlags flags;
  AddConversionFlags(app, flags);
  app.parse(
      std::vector<std::string>{"--no-reuse", "gguf,gptq", "--format", "folder"});  // backwards
  EXPECT_EQ(flags.spec.model, "folder");
  EXPECT_THAT(ValidateJobFlags(flags), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(const auto request, MakeJobRequest(flags, {"m", "", ""}));
  v1::QuantizationSpec expected;
  expected.set_model("m");
  expected.mutable_convert();
  expected.add_output_formats("gptq");
  expected.add_output_formats("gguf");
  expected.set_cache_policy(v1::SKIP_LOOKUP);
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(request.spec(), expected))
      << request.spec().DebugString();
  CLI::App other;
  JobFlags without;
  AddConversionFlags(other, without);
  EXPECT_THROW(other.parse(std::vector<std::string>{"folder"}), CLI::RequiredError);
}

TEST(HelpTest, EveryCommandHasAPageWithItsSections) {
  CLI::App root;
  CommandLine line;
  BuildCommandLine(root, line);
  const auto commands = root.get_subcommands({});
  EXPECT_EQ(commands.size(), 15u);
  for (const CLI::App* command : commands) {
    SCOPED_TRACE(command->get_name());
    const std::string page = command->help();
    for (const char* section :
         {"NAME\n", "\nSYNOPSIS\n", "\nDESCRIPTION\n", "\nEXIT STATUS\n", "--server HOST:PORT"}) {
      EXPECT_THAT(page, HasSubstr(section));
    }
  }
}

TEST(CompletionTest, ScriptsKnowCommandsFlagsAndChoices) {
  CLI::App root;
  CommandLine line;
  BuildCommandLine(root, line);
  for (const std::string shell : {"bash", "zsh", "fish"}) {
    SCOPED_TRACE(shell);
    PTQ_ASSERT_OK_AND_ASSIGN(const std::string script, CompletionScript(root, shell));
    EXPECT_THAT(script, HasSubstr("auto-round gptq opt-rtn rtn"));
    EXPECT_THAT(script, HasSubstr("paper fast default best"));
    EXPECT_THAT(script, HasSubstr("capabilities"));
    EXPECT_THAT(script, HasSubstr("list --quiet"));
  }
  EXPECT_THAT(CompletionScript(root, "csh"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("csh")));
}

}  // namespace
}  // namespace ptq
