// The page is whole for a full report, for one without evaluation or losses, and hostile names stay
// text.
#include "worker/report_html.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kReport[] = R"({
  "engine_version": "0.1.0", "model": {"name": "tiny<b>"},
  "inputs": {"model": [{"path": "config.json", "sha256": "aa11"}],
    "calibration": {"sha256": "bb22"}, "evaluation": {"sha256": "cc33"}},
  "outputs": [{"path": "model-00001-of-00002.safetensors", "sha256": "dd44"}],
  "spec": {"algorithm": "auto-round", "bits": 4, "group_size": 128, "asymmetric": false},
  "evaluation": {"baseline": {"perplexity": 20.0},
    "quantized": {"perplexity": 21.0, "mean_kld": 0.05, "top1_agreement": 0.9,
      "kld_histogram": {"log10_min": -8, "log10_max": 2, "counts": [0, 10, 5]}}},
  "blocks": [{"name": "model.layers.0", "seconds": 1.5, "loss_first": 0.4, "loss_best": 0.1,
    "loss_curve": [0.4, 0.1, 0.2],
    "modules": [
      {"name": "model.layers.0.self_attn.q_proj", "bits": 4, "group_size": 128, "symmetric": true,
       "output_mse": 0.5, "relative_error": 0.01, "rtn_output_mse": 1.0, "fallback_reason": ""},
      {"name": "model.layers.0.mlp.down_proj", "bits": 8, "group_size": -1, "symmetric": true,
       "output_mse": null, "rtn_output_mse": null, "fallback_reason": "no tokens"}]}],
  "timing": {"total_seconds": 90.0}, "size": {"bits_per_weight": 4.125},
  "warnings": ["<script>alert(1)</script>"]})";

std::string Render(const std::string& text) {
  const absl::StatusOr<Json> report = ParseJson(text);
  EXPECT_THAT(report, testing::IsOk());
  return RenderHtmlReport(*report);
}

TEST(ReportHtmlTest, ShowsEveryPartOfAFullReport) {
  const std::string html = Render(kReport);
  EXPECT_THAT(html, HasSubstr("20.00 → 21.00"));
  EXPECT_THAT(html, HasSubstr("+5.00 %"));
  EXPECT_THAT(html, HasSubstr("4.125"));
  EXPECT_THAT(html, HasSubstr("Loss by block"));
  EXPECT_THAT(html, HasSubstr(">0.50</td>")) << "output error over rtn's";
  EXPECT_THAT(html, HasSubstr("8 bits, channel, symmetric\">8</td>"));
  EXPECT_THAT(html, HasSubstr("q_proj</td><td>4</td>")) << "in the table of all layers";
  EXPECT_THAT(html, HasSubstr("no tokens"));
  EXPECT_THAT(html, HasSubstr("1e-8</span>"));
  EXPECT_THAT(html, HasSubstr("1e2</span>"));
  for (const char* digest : {"aa11", "bb22", "cc33", "dd44"}) EXPECT_THAT(html, HasSubstr(digest));
}

TEST(ReportHtmlTest, ShowsWhatIsQuantizedOutsideOfTheBlocks) {
  EXPECT_THAT(Render(kReport), Not(HasSubstr("Outside of the blocks")));
  const std::string html = Render(R"({"outside_of_blocks": [{"name": "lm_head<b>", "bits": 8,
    "group_size": 32, "relative_error": 0.0125, "fallback_reason": "head: opt-rtn"}]})");
  EXPECT_THAT(html, HasSubstr("Outside of the blocks"));
  EXPECT_THAT(html, HasSubstr("lm_head&lt;b&gt;"));
  EXPECT_THAT(html, HasSubstr("head: opt-rtn"));
  EXPECT_THAT(html, HasSubstr("1.25 %"));
}

TEST(ReportHtmlTest, ThePageBeginsWithThePresetOrTheKQuant) {
  const auto titled = [](const std::string& spec) {
    return Render(R"({"spec": {"algorithm": "rtn", "bits": 4, "group_size": 32, )" + spec + "}}");
  };
  EXPECT_THAT(titled(R"("scheme": "Q4_K")"), HasSubstr(">rtn, Q4_K, 4 bits, group size 32"));
  EXPECT_THAT(titled(R"("scheme": "Q4_K", "preset": "Q4_K_M")"),
              HasSubstr(">rtn, preset Q4_K_M, 4 bits"));
  EXPECT_THAT(titled(R"("scheme": "")"), HasSubstr(">rtn, 4 bits"));
}

TEST(ReportHtmlTest, ShowsWhichLoadersLoadTheResult) {
  const std::string html = Render(R"({"loaders": [{"format": "gptq", "loaders": [
    {"loader": "transformers", "verdict": "loads", "problems": [], "remarks": [],
     "needs": "gptqmodel >= 1.4.3"},
    {"loader": "vllm", "verdict": "does_not_load", "problems": ["m.q_proj: <3 bits>"],
     "remarks": [], "needs": null}]},
    {"format": "affine", "error": "no model there"}]})");
  EXPECT_THAT(html, HasSubstr("Where it loads"));
  EXPECT_THAT(html, HasSubstr("loads</td><td>Needs gptqmodel &gt;= 1.4.3."));
  EXPECT_THAT(html, HasSubstr("does not load</td><td>m.q_proj: &lt;3 bits&gt;"));
  EXPECT_THAT(html, HasSubstr("no model there"));
  EXPECT_THAT(Render("{}"), Not(HasSubstr("Where it loads")));
}

constexpr char kExperts[] = R"({
  "blocks": [{"name": "model.layers.0", "modules": [
      {"name": "model.layers.0.mlp.down_proj", "bits": 4, "tokens": 900}]},
    {"name": "model.layers.1", "modules": [
      {"name": "model.layers.1.mlp.experts.0.up_proj", "bits": 4, "tokens": 12},
      {"name": "model.layers.1.mlp.experts.1.up_proj", "bits": 4, "tokens": 0},
      {"name": "model.layers.1.mlp.experts.10.up_proj", "bits": 4, "tokens": 1788},
      {"name": "model.layers.1.mlp.shared_experts.up_proj", "bits": 4, "tokens": 900}]}]})";

TEST(ReportHtmlTest, ExpertsAreOneLineABlock) {
  const std::string html = Render(kExperts);
  EXPECT_THAT(html, HasSubstr("<td>model.layers.1</td><td>3</td><td>0</td><td>12</td><td>1788</td>"
                              "<td>1</td>"));
  EXPECT_THAT(html, Not(HasSubstr("<td>model.layers.0</td><td>1"))) << "it has no experts";
  EXPECT_THAT(html, HasSubstr("<th title=\"mlp.shared_experts.up_proj\">"));
  EXPECT_THAT(html, Not(HasSubstr("<th title=\"mlp.experts"))) << "columns of single experts";
}

constexpr char kTuned[] = R"({
  "spec": {"algorithm": "auto-round", "bits": 4, "group_size": 128},
  "tuning": {"recipe": "fast", "iterations": 20, "batch_size": 8, "precision": "fp8",
    "paths": {"autograd": 1, "fused fp8": 3},
    "parameters": "positions <U>",
    "optimizer": "Adam", "first_decay": 0.5, "second_decay": 0.949999988079071,
    "learning_rate": 0.034999999999999996, "scale_learning_rate": 0.007, "schedule": "cosine",
    "loss": "Fisher metric", "fisher_tokens": 16384, "fisher_weight": 0.9, "kept": "last step"},
  "calibration": {"samples": 16, "tokens": 2048, "error_tokens": 1920, "held_out_samples": 2, "held_out_ratio": 1.1251},
  "blocks": [{"name": "model.layers.0", "loss_curve": [0.4, 0.1, 0.2], "modules": [
    {"name": "model.layers.0.mlp.up_proj", "output_mse": 0.5, "rtn_output_mse": 1.0}]}],
  "timing": {"fisher_seconds": 2.5, "quantize_seconds": 26.0, "search_seconds": 3.5},
  "memory": {"host_peak_bytes": 4e8, "fisher_host_peak_bytes": 3e8}})";

TEST(ReportHtmlTest, ShowsTheRecipeInEffect) {
  const std::string html = Render(kTuned);
  EXPECT_THAT(html, HasSubstr("auto-round, fast recipe, 4 bits"));
  EXPECT_THAT(html, HasSubstr("<td>samples a step</td><td>8</td>"));
  EXPECT_THAT(html, HasSubstr("<td>precision</td><td>fp8</td>"));
  EXPECT_THAT(html, HasSubstr("<td>computed</td><td>autograd: 1 block, fused fp8: 3 blocks</td>"));
  EXPECT_THAT(html, HasSubstr("<td>positions &lt;U&gt;</td>"));
  EXPECT_THAT(html, HasSubstr("<td>Adam, first decay 0.5, second decay 0.95</td>"));
  EXPECT_THAT(html, HasSubstr("<td>0.035, of scale factors 0.007, cosine schedule</td>"));
  EXPECT_THAT(html, HasSubstr("<td>Fisher metric, over 16384 tokens, weight 0.9</td>"));
  EXPECT_THAT(html, HasSubstr("weighted by the Fisher metric"));
  EXPECT_THAT(html, HasSubstr("The last step was kept."));
  EXPECT_THAT(html, HasSubstr("each layer's output on 1920 tokens of the calibration text"));
  EXPECT_THAT(html, HasSubstr("<td>Fisher pass</td><td>2.5 s</td>"));
  EXPECT_THAT(html, HasSubstr("phases may add up to more than the total"));
  EXPECT_THAT(html, HasSubstr("of which search for scales</td><td>3.5 s</td>"));
  EXPECT_THAT(html, HasSubstr("until the Fisher pass was over</td><td>300.0 MB</td>"));
}

TEST(ReportHtmlTest, SaysHowFarTheCalibrationHolds) {
  EXPECT_THAT(Render(kTuned), HasSubstr("Calibrated on 2048 tokens in 16 samples: errors on "
                                        "held-out text are 13 % above those on the calibration "
                                        "text."));
  const auto with = [](const std::string& more) {
    return Render(R"({"tuning": null, "calibration": {"samples": 2, "tokens": 256)" + more + "}}");
  };
  EXPECT_THAT(with(R"(, "held_out_ratio": 0.949)"), HasSubstr("are 5 % below those"));
  EXPECT_THAT(with(R"(, "held_out_ratio": 1.004)"), HasSubstr("are those on the calibration text"));
  const std::string bare = with("");
  EXPECT_THAT(bare, HasSubstr("Calibrated on 256 tokens in 2 samples."));
  EXPECT_THAT(bare, HasSubstr("<h2>Calibration</h2>"));
}

TEST(ReportHtmlTest, APaperRecipeHasNoFisherMetric) {
  const std::string html = Render(R"({"tuning": {"recipe": "paper", "iterations": 200,
    "optimizer": "signed gradient descent", "learning_rate": 0.005, "schedule": "linear",
    "loss": "squared error", "kept": "best step"}, "calibration": {"samples": 2, "tokens": 256},
    "blocks": [{"name": "model.layers.0", "loss_curve": [0.4, 0.1]}],
    "timing": {"fisher_seconds": 0, "quantize_seconds": 26.0, "search_seconds": 0},
    "memory": {"host_peak_bytes": 4e8, "fisher_host_peak_bytes": 0}})");
  EXPECT_THAT(html, HasSubstr("<td>signed gradient descent</td>"));
  EXPECT_THAT(html, HasSubstr("<td>0.005, linear schedule</td>"));
  EXPECT_THAT(html, HasSubstr("Mean squared error of each block's output"));
  EXPECT_THAT(html, HasSubstr("The best step was kept."));
  EXPECT_THAT(html, Not(HasSubstr("Fisher")));
  EXPECT_THAT(html, Not(HasSubstr("search")));
  EXPECT_THAT(html, Not(HasSubstr("held-out")));
}

TEST(ReportHtmlTest, AServersLinkIsNoTitle) {
  EXPECT_THAT(Render(R"({"model": {"name": "model", "architecture": "LlamaForCausalLM"}})"),
              HasSubstr("<h1>LlamaForCausalLM</h1>"));
}

TEST(ReportHtmlTest, TextFromInputsIsEscapedAndNothingIsFetched) {
  const std::string html = Render(kReport);
  EXPECT_THAT(html, Not(HasSubstr("<script")));
  EXPECT_THAT(html, Not(HasSubstr("tiny<b>")));
  EXPECT_THAT(html, HasSubstr("tiny&lt;b&gt;"));
  EXPECT_THAT(html, Not(HasSubstr("http")));
}

TEST(ReportHtmlTest, BestSoFarNeverRises) {
  // Losses .4 .1 .2: the best curve ends at the height of its second point.
  EXPECT_THAT(Render(kReport), HasSubstr("points=\"0.0,4.0 90.0,56.0 180.0,56.0 \""));
}

TEST(ReportHtmlTest, WithoutEvaluationItSaysHowToGetOne) {
  const std::string html = Render(R"({"evaluation": null, "blocks": []})");
  EXPECT_THAT(html, HasSubstr("--evaluation"));
  EXPECT_THAT(html, Not(HasSubstr("Loss by block")));
  EXPECT_THAT(html, Not(HasSubstr("Tuning")));
  EXPECT_THAT(html, Not(HasSubstr("Calibration")));
  EXPECT_THAT(html, HasSubstr("</html>"));
}

}  // namespace
}  // namespace ptq
