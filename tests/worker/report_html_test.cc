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
  EXPECT_THAT(html, HasSubstr("8 bits, channel, symmetric"));
  EXPECT_THAT(html, HasSubstr("no tokens"));
  EXPECT_THAT(html, HasSubstr("1e-8</span>"));
  EXPECT_THAT(html, HasSubstr("1e2</span>"));
  for (const char* digest : {"aa11", "bb22", "cc33", "dd44"}) EXPECT_THAT(html, HasSubstr(digest));
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
  EXPECT_THAT(html, HasSubstr("</html>"));
}

}  // namespace
}  // namespace ptq
