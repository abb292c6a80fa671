// Progress at fixed widths, and text for people.
#include "client/progress_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "client/progress_display.h"
#include "client/report_text.h"
#include "client/text_format.h"
#include "common/json.h"

namespace ptq {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

const absl::Time kStart = absl::FromUnixSeconds(1'700'000'000);
const TerminalTraits kUnicode{true, false, true, -1};
const TerminalTraits kAscii{true, false, false, -1};
const TerminalTraits kColor{true, true, true, -1};

v1::JobEvent Snapshot(v1::QuantizationJob::State state, const std::string& phase, int done,
                      double fraction, int64_t elapsed, int64_t eta) {
  v1::JobEvent event;
  v1::QuantizationJob& job = *event.mutable_snapshot();
  job.set_state(state);
  job.mutable_progress()->set_phase(phase);
  job.mutable_progress()->set_blocks_done(done);
  job.mutable_progress()->set_blocks_total(6);
  job.mutable_progress()->set_block_fraction(fraction);
  job.mutable_progress()->mutable_elapsed()->set_seconds(elapsed);
  if (eta >= 0) job.mutable_progress()->mutable_eta()->set_seconds(eta);
  return event;
}

v1::JobEvent Block(int block) {
  v1::JobEvent event;
  event.mutable_block()->set_block(block);
  event.mutable_block()->set_name("model.layers." + std::to_string(block));
  event.mutable_block()->set_seconds(12.34);
  event.mutable_block()->set_loss_first(0.00123);
  event.mutable_block()->set_loss_best(0.000456);
  return event;
}

ProgressView HalfWay() {
  ProgressView view;
  view.Apply(Snapshot(v1::QuantizationJob::RUNNING, "quantize", 2, 0.5, 65, 90), kStart);
  view.Apply(Block(1), kStart);
  return view;
}

TEST(ProgressViewTest, FitsEightyColumns) {
  EXPECT_THAT(HalfWay().Render(kUnicode, 80, kStart),
              ElementsAre("Quantizing   █████████▌░░░░░░░░░░░░░   41 %  2/6 blocks  1:05 elapsed, "
                          "1:30 left",
                          "             model.layers.1  12.3 s  loss 0.00123 → 0.000456 (-63 %)"));
}

TEST(ProgressViewTest, TheBarEndsGrowingOnWideTerminals) {
  const auto lines = HalfWay().Render(kAscii, 120, kStart);
  EXPECT_EQ(lines[0],
            "Quantizing   ################------------------------   41 %  2/6 blocks  1:05 "
            "elapsed, 1:30 left");
  EXPECT_THAT(lines[1], HasSubstr("0.00123 -> 0.000456"));
}

TEST(ProgressViewTest, NarrowTerminalsLoseWordsBeforeTheBar) {
  EXPECT_EQ(HalfWay().Render(kAscii, 60, kStart)[0],
            "Quantizing   ####-------   41 %  2/6 blocks  1:05, 1:30 left");
  EXPECT_EQ(HalfWay().Render(kAscii, 45, kStart)[0],
            "Quantizing   #####--------   41 %  2/6 blocks");
}

class WidthTest : public ::testing::TestWithParam<int> {};

TEST_P(WidthTest, NoLineIsWiderThanTheTerminal) {
  for (const std::string& line : HalfWay().Render(kUnicode, GetParam(), kStart)) {
    EXPECT_LE(DisplayWidth(line), GetParam()) << line;
  }
}

INSTANTIATE_TEST_SUITE_P(Widths, WidthTest, ::testing::Values(1, 5, 10, 20, 40, 60, 79, 80, 200));

TEST(ProgressViewTest, TheClockRunsBetweenEvents) {
  const std::string line = HalfWay().Render(kUnicode, 80, kStart + absl::Seconds(20))[0];
  EXPECT_THAT(line, HasSubstr("1:25 elapsed, 1:10 left"));
  EXPECT_THAT(HalfWay().Render(kUnicode, 80, kStart + absl::Hours(1))[0], HasSubstr("0:00 left"));
}

TEST(ProgressViewTest, OtherPhasesHaveABarOfTheirOwn) {
  ProgressView view;
  view.Apply(Snapshot(v1::QuantizationJob::RUNNING, "evaluate", 6, 0.25, 3, -1), kStart);
  EXPECT_THAT(view.Render(kUnicode, 80, kStart)[0], HasSubstr(" 25 %"));
}

TEST(ProgressViewTest, TheFisherPassHasANameAndABarOfItsOwn) {
  ProgressView view;
  EXPECT_THAT(view.Apply(Snapshot(v1::QuantizationJob::RUNNING, "fisher", 0, 0.5, 7, -1), kStart),
              ElementsAre("Fisher pass"));
  EXPECT_EQ(view.Render(kAscii, 80, kStart)[0],
            "Fisher pass  #################-----------------   50 %  0/6 blocks  0:07 elapsed");
  EXPECT_THAT(view.Apply(Snapshot(v1::QuantizationJob::RUNNING, "observe", 0, 0, 9, -1), kStart),
              ElementsAre("Observing"));
  EXPECT_THAT(view.Render(kAscii, 80, kStart)[0], HasSubstr("  0 %  0/6 blocks"));
}

TEST(ProgressViewTest, APhaseOfANewerServerShowsUnderItsName) {
  ProgressView view;
  EXPECT_THAT(view.Apply(Snapshot(v1::QuantizationJob::RUNNING, "polish", 0, 0.5, 7, -1), kStart),
              ElementsAre("polish"));
  EXPECT_THAT(view.Render(kAscii, 80, kStart)[0], HasSubstr(" 50 %"));
}

TEST(ProgressViewTest, ColoursFrameWordsAndVanishWithoutThem) {
  EXPECT_THAT(HalfWay().Render(kColor, 80, kStart)[0], HasSubstr("\x1b[1mQuantizing  \x1b[0m"));
  EXPECT_THAT(HalfWay().Render(kUnicode, 80, kStart)[0], Not(HasSubstr("\x1b")));
}

TEST(ProgressViewTest, PlainLinesComeOnceAPhaseAndOnceABlock) {
  ProgressView view;
  EXPECT_THAT(view.Apply(Snapshot(v1::QuantizationJob::QUEUED, "", 0, 0, 0, -1), kStart),
              ElementsAre("Queued"));
  EXPECT_THAT(view.Apply(Snapshot(v1::QuantizationJob::RUNNING, "load", 0, 0, 0, -1), kStart),
              ElementsAre("Loading"));
  EXPECT_THAT(view.Apply(Snapshot(v1::QuantizationJob::RUNNING, "load", 0, 0.5, 0, -1), kStart),
              ElementsAre());
  EXPECT_THAT(view.Apply(Block(0), kStart),
              ElementsAre("block 1/6  model.layers.0  12.3 s  loss 0.00123 -> 0.000456 (-63 %)"));
}

TEST(ProgressViewTest, ABlockWithoutLossSaysNothingOfIt) {
  ProgressView view;
  v1::JobEvent event = Block(0);
  event.mutable_block()->clear_loss_first();
  event.mutable_block()->clear_loss_best();
  EXPECT_THAT(view.Apply(event, kStart), ElementsAre("block 1  model.layers.0  12.3 s"));
}

TEST(TransferTest, ALineSaysHowMuchAndHowFast) {
  EXPECT_EQ(RenderTransfer("Uploading m (2 files)", 500'000'000, 2'000'000'000, absl::Seconds(1),
                           kAscii, 100),
            "Uploading m (2 files)  ######------------------  500 MB of 2.00 GB  500 MB/s  0:03 "
            "left");
}

TEST(TransferTest, ElsewhereThanOnATerminalItIsOneLine) {
  std::ostringstream out;
  TransferDisplay display(out, {});
  display.OnBegin("Checking m", 2'000'000, true);
  display.OnEnd();
  display.OnBegin("Uploading m", 2'000'000, false);
  display.OnBytes(2'000'000);
  display.OnEnd();
  EXPECT_EQ(out.str(), "Uploading m: 2.00 MB\n");
}

TEST(LiveRegionTest, RedrawsInPlace) {
  std::ostringstream out;
  LiveRegion region(out);
  region.Draw({"a", "b"});
  region.Draw({"c", "d"});
  region.Clear();
  EXPECT_EQ(out.str(),
            "a\x1b[K\nb\x1b[K"
            "\r\x1b[1Ac\x1b[K\nd\x1b[K"
            "\r\x1b[1A\x1b[J");
}

TEST(TextFormatTest, NumbersAreShort) {
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(1'000), "1.00 kB");
  EXPECT_EQ(FormatBytes(13'246'000), "13.2 MB");
  EXPECT_EQ(FormatBytes(999'999'999), "1.00 GB");
  EXPECT_EQ(FormatSeconds(absl::Seconds(7)), "0:07");
  EXPECT_EQ(FormatSeconds(absl::Seconds(3723)), "1:02:03");
  EXPECT_EQ(FormatLoss(12345.6), "12346");
  EXPECT_EQ(FormatLoss(0.0000123), "1.23e-05");
  EXPECT_EQ(Ellipsize("abcdef", 4, true), "abc…");
  EXPECT_EQ(Ellipsize("abcdef", 6, true), "abcdef");
}

TEST(TextFormatTest, WrappingKeepsWordsWhole) {
  EXPECT_EQ(WrapText("one two three", 9, 2), "  one two\n  three\n");
}

TEST(ReportTextTest, TheSummaryShowsBeforeAndAfter) {
  const auto report = ParseJson(R"({
    "evaluation": {"baseline": {"perplexity": 20.0},
                   "quantized": {"perplexity": 21.0, "mean_kld": 0.0509, "top1_agreement": 0.872}},
    "size": {"before_bytes": 12000000, "after_bytes": 6000000, "bits_per_weight": 4.125}})");
  EXPECT_EQ(ReportSummary(*report),
            "                      before   after\n"
            "  perplexity          20.000   21.000   +5.0 %\n"
            "  mean KL divergence           0.0509   nats\n"
            "  top-1 agreement              87.2 %\n"
            "  weights             12.0 MB  6.00 MB  -50.0 %\n"
            "  bits per weight              4.125\n");
}

TEST(ReportTextTest, WithoutEvaluationTheSizesRemain) {
  const auto report =
      ParseJson(R"({"evaluation": null, "size": {"bits_per_weight": 4.125}, "blocks": []})");
  EXPECT_THAT(ReportSummary(*report), HasSubstr("bits per weight"));
  EXPECT_THAT(ReportSummary(*report), Not(HasSubstr("perplexity")));
}

TEST(ReportTextTest, DetailsListTheWorstLayersFirst) {
  const auto report = ParseJson(R"({"blocks": [{"name": "b0", "seconds": 1.5, "loss_first": 0.2,
    "loss_best": 0.1, "modules": [
      {"name": "good", "bits": 4, "group_size": 128, "relative_error": 0.001, "output_mse": 1.0,
       "rtn_output_mse": 2.0, "fallback_reason": null},
      {"name": "bad", "bits": 4, "group_size": 128, "relative_error": 0.01, "output_mse": 1.0,
       "rtn_output_mse": 1.0, "fallback_reason": "not positive definite"}]}],
    "warnings": ["auto_map was ignored"]})");
  const std::string text = ReportDetails(*report);
  EXPECT_LT(text.find("bad"), text.find("good"));
  EXPECT_THAT(text, HasSubstr("-50.0 %"));
  EXPECT_THAT(text, HasSubstr("fell back: not positive definite"));
  EXPECT_THAT(text, HasSubstr("auto_map was ignored"));
}

TEST(ReportTextTest, DetailsTellWhatIsQuantizedOutsideOfTheBlocks) {
  const auto report = ParseJson(R"({"outside_of_blocks": [
    {"name": "model.embed_tokens", "bits": 8, "group_size": -1, "relative_error": null,
     "fallback_reason": "embedding: rtn"},
    {"name": "lm_head", "scheme": "Q6_K", "bits": 6, "group_size": 16, "relative_error": 0.0125,
     "fallback_reason": null}]})");
  EXPECT_EQ(ReportDetails(*report),
            "\nOutside of the blocks\n"
            "LAYER               BITS  GROUP  RELATIVE ERROR  REMARK\n"
            "model.embed_tokens  8     -1     -               embedding: rtn\n"
            "lm_head             Q6_K  16     1.250 %\n");
}

TEST(ReportTextTest, DetailsNameTheRecipeAndJudgeTheCalibration) {
  const auto details = [](const std::string& text) { return ReportDetails(*ParseJson(text)); };
  EXPECT_EQ(details(R"({"tuning": {"recipe": "fast", "iterations": 20, "loss": "Fisher metric"},
    "calibration": {"tokens": 2048, "held_out_ratio": 1.1251},
    "timing": {"fisher_seconds": 2.5, "quantize_seconds": 26.0, "search_seconds": 3.5}})"),
            "\nRecipe: fast, 20 iterations, Fisher metric\n"
            "Calibration: 2048 tokens; errors on held-out text are 13 % above those on it\n"
            "\nTime: fisher 2.5 s, quantize 26.0 s (search 3.5 s)\n");
  EXPECT_EQ(details(R"({"tuning": {"recipe": "paper", "iterations": 200, "precision": "bf16",
    "loss": "squared error"}})"),
            "\nRecipe: paper, 200 iterations, squared error, bf16\n");
  EXPECT_EQ(details(R"({"calibration": {"tokens": 2048, "held_out_ratio": 0.95}})"),
            "\nCalibration: 2048 tokens; errors on held-out text are 5 % below those on it\n");
  EXPECT_EQ(details(R"({"tuning": null, "calibration": {"tokens": 2048},
    "timing": {"fisher_seconds": 0, "quantize_seconds": 2, "search_seconds": 0}})"),
            "\nCalibration: 2048 tokens\n\nTime: quantize 2.0 s\n");
  EXPECT_EQ(details(R"({"tuning": null, "calibration": null})"), "");
}

TEST(ReportTextTest, DetailsSayWhichLoadersLoadTheResult) {
  const auto report = ParseJson(R"({"loaders": [{"format": "affine", "loaders": [
    {"loader": "transformers", "verdict": "loads", "problems": [], "remarks": [],
     "needs": "torchao >= 0.15"},
    {"loader": "vllm", "verdict": "does_not_load", "problems": ["q_proj: no"], "remarks": [],
     "needs": null}]}]})");
  EXPECT_EQ(ReportDetails(*report),
            "\nLoaders\n"
            "FORMAT  LOADER        VERDICT        NEEDS\n"
            "affine  transformers  loads          torchao >= 0.15\n"
            "affine  vllm          does not load\n"
            "  vllm: q_proj: no\n");
}

TEST(ReportTextTest, ASpecsSummaryNamesARecipeThatIsNotTheDefault) {
  v1::QuantizationSpec spec;
  spec.mutable_auto_round();
  EXPECT_EQ(SpecSummary(spec), "auto-round W4G128");
  spec.mutable_auto_round()->set_recipe("default");
  EXPECT_EQ(SpecSummary(spec), "auto-round W4G128");
  spec.mutable_auto_round()->set_recipe("paper");
  EXPECT_EQ(SpecSummary(spec), "auto-round paper W4G128");
  spec.set_preset("W4A16_M");
  EXPECT_EQ(SpecSummary(spec), "auto-round paper W4A16_M");
}

TEST(ReportTextTest, CapabilitiesListTheRecipes) {
  v1::ServerCapabilities capabilities;
  capabilities.add_recipes("paper");
  capabilities.add_recipes("fast");
  capabilities.add_presets()->set_name("W4A16");
  capabilities.mutable_presets(0)->set_description("4 bits");
  EXPECT_THAT(CapabilitiesDetails(capabilities), HasSubstr("Presets:\n  W4A16  4 bits\n"));
  EXPECT_THAT(CapabilitiesDetails(capabilities), HasSubstr("paper, fast\n"));
}

}  // namespace
}  // namespace ptq
