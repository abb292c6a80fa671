#include "worker/report_html.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "worker/html.h"
#include "worker/report_html_layers.h"

namespace ptq {
namespace {

using html::Array;
using html::At;
using html::Bytes;
using html::Card;
using html::Count;
using html::Escape;
using html::Figure;
using html::Number;
using html::Panel;
using html::Percent;
using html::Row;
using html::Seconds;
using html::Section;
using html::Text;

constexpr char kStyle[] = R"(
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1c2024;--dim:#646b73;--line:#e1e4e8;--accent:#0b6bcb;
--good:#1f8a5b;--bad:#c2410c;--warn-bg:#fff5e5;--warn-line:#f0b35a}
@media(prefers-color-scheme:dark){:root{--bg:#121417;--card:#1b1e23;--ink:#e6e8ea;--dim:#9aa2ab;--line:#30353c;
--accent:#5aa9f5;--good:#4cc38a;--bad:#ff8f5c;--warn-bg:#2c2412;--warn-line:#8a6420}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",
Roboto,"Helvetica Neue",Arial,sans-serif}main{max-width:1080px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:36px 0 4px}
p.note{color:var(--dim);margin:0 0 12px;max-width:72ch}.cards{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));
margin:20px 0}.card,.panel{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.card b{display:block;font-size:1.35rem;font-weight:650;font-variant-numeric:tabular-nums}.card span{color:var(--dim);font-size:.85rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{padding:6px 10px;
text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}th{font-weight:600;color:var(--dim);font-size:.85rem}
th:first-child,td:first-child{text-align:left}tr:last-child td{border-bottom:0}td:first-child{white-space:normal}
.loaders th,.loaders td{text-align:left;vertical-align:top}.loaders td:last-child{white-space:normal}
.facts td:first-child{color:var(--dim);width:30%;min-width:9ch}.facts td:last-child{text-align:left;white-space:normal}
td.part{padding-left:28px;color:var(--dim)}.grid td,.grid th{padding:4px 6px;text-align:center}
.grid td{border:2px solid var(--card);border-radius:6px;font-size:.82rem}.grid td:first-child,.grid th:first-child{text-align:left;color:var(--dim);white-space:nowrap}
.curves{display:grid;gap:12px;grid-template-columns:repeat(auto-fill,minmax(190px,1fr))}.curves h3{font-size:.85rem;margin:0;
font-weight:600;overflow-wrap:anywhere}.curves p{margin:2px 0 0;color:var(--dim);font-size:.8rem;font-variant-numeric:tabular-nums}
svg{display:block;width:100%;height:auto}.ticks{display:flex;justify-content:space-between;color:var(--dim);font-size:.8rem}.histogram svg{height:170px}.axis{stroke:var(--line);stroke-width:1}
.bar{fill:var(--accent)}.curve{fill:none;stroke:var(--accent);stroke-width:1.2;opacity:.35}.best{fill:none;stroke:var(--accent);stroke-width:2}
.warnings{background:var(--warn-bg);border:1px solid var(--warn-line);border-radius:10px;padding:10px 14px 10px 32px;margin:16px 0}
details{margin-top:12px}summary{cursor:pointer;color:var(--accent)}pre{overflow-x:auto;font:12.5px/1.45 ui-monospace,Menlo,Consolas,monospace}
.digest{font:12px ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere;white-space:normal;text-align:left}
.legend{display:flex;flex-wrap:wrap;gap:6px 14px;margin:10px 0 0;color:var(--dim);font-size:.82rem}.legend i{display:inline-block;width:12px;
height:12px;border-radius:3px;margin-right:5px;vertical-align:-1px}
@media(max-width:520px){main{padding:16px 10px 40px}th,td{padding:5px 6px}.panel{padding:8px}.card b{font-size:1.15rem}}
)";

std::string SummaryCards(const Json& report) {
  std::string out = "<div class=\"cards\">\n";
  const auto before = Number(report, {"evaluation", "baseline", "perplexity"});
  const auto after = Number(report, {"evaluation", "quantized", "perplexity"});
  if (before && after) {
    out += Card(Figure(before) + " → " + Figure(after), "perplexity");
    out += Card(Figure(Number(report, {"evaluation", "quantized", "mean_kld"})), "mean KLD, nats");
    out += Card(Percent(Number(report, {"evaluation", "quantized", "top1_agreement"})),
                "top-1 agreement");
  }
  out += Card(Figure(Number(report, {"size", "bits_per_weight"})), "bits a quantized weight");
  if (const Json* conversion = At(report, {"conversion"})) {
    out += Card(Bytes(Number(*conversion, {"source", "bytes"})),
                "read as " + Escape(Text(*conversion, {"source", "format"})));
    for (const Json& result : Array(*conversion, "results")) {
      out +=
          Card(Bytes(Number(result, {"bytes"})), "written as " + Escape(Text(result, {"format"})));
    }
    return out + Card(Seconds(Number(report, {"timing", "total_seconds"})), "in all") + "</div>\n";
  }
  out += Card(Bytes(Number(report, {"size", "before_bytes"})) + " → " +
                  Bytes(Number(report, {"size", "after_bytes"})),
              "all weights, codes packed");
  out += Card(Seconds(Number(report, {"timing", "total_seconds"})), "in all");
  return out + "</div>\n";
}

std::string Evaluation(const Json& report) {
  const Json* quantized = At(report, {"evaluation", "quantized"});
  if (At(report, {"conversion"}) != nullptr) return "";  // which changes no value
  if (quantized == nullptr) {
    return Section(
        "Accuracy",
        "This job had no evaluation text. Give one with <code>--evaluation FILE</code> to see "
        "perplexity and divergence here.",
        "");
  }
  const auto before = Number(report, {"evaluation", "baseline", "perplexity"});
  const auto after = Number(*quantized, {"perplexity"});
  std::string table = "<table>" + Row({"", "original", "quantized", "change"}, "th");
  table += Row({"perplexity", Figure(before), Figure(after),
                before && after ? absl::StrFormat("%+.2f %%", 100 * (*after / *before - 1)) : "–"});
  table += Row({"top-1 agreement", "100 %", Percent(Number(*quantized, {"top1_agreement"})), ""});
  table += Row({"RMS change of the true token’s probability", "0",
                Percent(Number(*quantized, {"rms_delta_p"})), ""});
  table += "</table>";
  std::string divergence = "<table>" + Row({"KL divergence", "nats"}, "th");
  for (const auto& [key, label] : {std::pair{"mean_kld", "mean"},
                                   {"median_kld", "median"},
                                   {"p99_kld", "99th percentile"},
                                   {"p999_kld", "99.9th percentile"},
                                   {"max_kld", "largest"}}) {
    divergence += Row({label, Figure(Number(*quantized, {key}))});
  }
  divergence += "</table>";
  return Section(
      "Before and after",
      "Measured on the evaluation text: how well each model predicts it, and how far the quantized "
      "model's next-token distribution moved.",
      Panel(table) + "<br>" + Panel(divergence));
}

std::string KldHistogram(const Json& report) {
  const Json* histogram = At(report, {"evaluation", "quantized", "kld_histogram"});
  if (histogram == nullptr || !Number(*histogram, {"log10_min"}) ||
      !Number(*histogram, {"log10_max"})) {
    return "";
  }
  const Json& counts = Array(*histogram, "counts");
  double largest = 0;
  for (const Json& count : counts) {
    if (count.is_number()) largest = std::max(largest, count.get<double>());
  }
  if (largest <= 0) return "";
  const double low = *Number(*histogram, {"log10_min"});
  const double high = *Number(*histogram, {"log10_max"});
  constexpr double kWidth = 720, kBase = 156;
  std::string svg = absl::StrFormat(
      "<div class=\"histogram\"><svg viewBox=\"0 0 %g %g\" preserveAspectRatio=\"none\" "
      "role=\"img\" "
      "aria-label=\"Histogram of KL divergence\">\n",
      kWidth, kBase);
  const double step = kWidth / static_cast<double>(counts.size());
  for (size_t i = 0; i < counts.size(); ++i) {
    if (!counts[i].is_number()) continue;
    const double height = (kBase - 8) * counts[i].get<double>() / largest;
    svg += absl::StrFormat(
        "<rect class=\"bar\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" "
        "height=\"%.2f\"><title>%s</title></rect>\n",
        static_cast<double>(i) * step + 0.5, kBase - height, std::max(step - 1, 0.5), height,
        DumpJson(counts[i]) + " positions");
  }
  svg += absl::StrFormat("<line class=\"axis\" x1=\"0\" y1=\"%g\" x2=\"%g\" y2=\"%g\"/>\n", kBase,
                         kWidth, kBase);
  // Outside the picture, so that the text keeps its size whatever the width.
  svg += "</svg><div class=\"ticks\">";
  constexpr int kTicks = 6;
  for (int i = 0; i < kTicks; ++i) {
    svg += absl::StrFormat("<span>1e%.3g</span>", low + (high - low) * i / (kTicks - 1));
  }
  svg += "</div></div>";
  return Section("Where the divergence lies",
                 "Positions of the evaluation text by their KL divergence (log scale, nats).",
                 Panel(svg));
}

// What is there of a cell's parts, separated by commas.
std::string Facts(const std::vector<std::string>& parts) {
  std::vector<std::string> present;
  for (const std::string& part : parts) {
    if (!part.empty()) present.push_back(part);
  }
  return absl::StrJoin(present, ", ");
}

std::string TuningTable(const Json& tuning) {
  const auto text = [&](const char* before, const char* key, const char* after = "") {
    const std::string value = Text(tuning, {key});
    return value.empty() ? "" : before + Escape(value) + after;
  };
  const auto figure = [&](const char* before, const char* key) {
    const auto value = Number(tuning, {key});
    return value && std::isfinite(*value) ? before + absl::StrFormat("%.4g", *value) : "";
  };
  const auto tokens = Number(tuning, {"fisher_tokens"});
  std::vector<std::string> paths;
  if (const auto found = tuning.find("paths"); found != tuning.end() && found->is_object()) {
    for (const auto& [path, count] : found->items()) {
      paths.push_back(Escape(path) + ": " + Escape(count.dump()) +
                      (count == 1 ? " block" : " blocks"));
    }
  }
  const std::vector<std::pair<const char*, std::string>> rows = {
      {"recipe", text("", "recipe")},
      {"iterations", text("", "iterations")},
      {"samples a step", text("", "batch_size")},
      {"precision", text("", "precision")},
      {"computed", Facts(paths)},
      {"parameters", text("", "parameters")},
      {"optimizer", Facts({text("", "optimizer"), figure("first decay ", "first_decay"),
                           figure("second decay ", "second_decay")})},
      {"learning rate",
       Facts({figure("", "learning_rate"), figure("of scale factors ", "scale_learning_rate"),
              text("", "schedule", " schedule")})},
      {"loss", Facts({text("", "loss"), tokens ? "over " + Count(tokens) + " tokens" : "",
                      figure("weight ", "fisher_weight")})},
      {"kept", text("", "kept")}};
  std::string out;
  for (const auto& [label, value] : rows) {
    if (!value.empty()) out += Row({label, value});
  }
  return out.empty() ? "" : Panel("<table class=\"facts\">" + out + "</table>");
}

// How much text there was, and whether the result holds beyond it.
std::string CalibrationNote(const Json& report) {
  const auto samples = Number(report, {"calibration", "samples"});
  const auto tokens = Number(report, {"calibration", "tokens"});
  if (!samples || !tokens) return "";
  std::string note =
      absl::StrFormat("Calibrated on %s tokens in %s samples", Count(tokens), Count(samples));
  const auto ratio = Number(report, {"calibration", "held_out_ratio"});
  if (!ratio) return note + ".";
  const double percent = std::round(100 * (*ratio - 1));
  note += ": errors on held-out text ";
  if (percent == 0) return note + "are those on the calibration text.";
  return note + absl::StrFormat("are %.0f %% %s those on the calibration text.", std::fabs(percent),
                                percent > 0 ? "above" : "below");
}

std::string Tuning(const Json& report) {
  const Json* tuning = At(report, {"tuning"});
  const std::string note = CalibrationNote(report);
  if (tuning == nullptr) return note.empty() ? "" : Section("Calibration", note, "");
  return Section("Tuning", note, TuningTable(*tuning));
}

std::string Curve(const std::vector<double>& values, const char* css, double low, double high) {
  std::string points;
  const double width = 180, height = 60;
  const double span = high > low ? high - low : 1;
  for (size_t i = 0; i < values.size(); ++i) {
    const double x = values.size() > 1
                         ? width * static_cast<double>(i) / static_cast<double>(values.size() - 1)
                         : 0;
    points += absl::StrFormat("%.1f,%.1f ", x, 4 + (height - 8) * (1 - (values[i] - low) / span));
  }
  return absl::StrFormat("<polyline class=\"%s\" points=\"%s\"/>", css, points);
}

std::string LossCurves(const Json& report) {
  std::string out;
  for (const Json& block : Array(report, "blocks")) {
    std::vector<double> losses;
    for (const Json& loss : Array(block, "loss_curve")) {
      if (loss.is_number()) losses.push_back(loss.get<double>());
    }
    if (losses.size() < 2) continue;
    std::vector<double> best(losses.size());
    for (size_t i = 0; i < losses.size(); ++i) {
      best[i] = i == 0 ? losses[0] : std::min(best[i - 1], losses[i]);
    }
    const auto [low, high] = std::minmax_element(losses.begin(), losses.end());
    out += "<div class=\"panel\"><h3>" + Escape(Text(block, {"name"})) +
           "</h3><svg viewBox=\"0 0 180 60\" role=\"img\" aria-label=\"loss by step\">" +
           Curve(losses, "curve", *low, *high) + Curve(best, "best", *low, *high) + "</svg><p>" +
           Figure(Number(block, {"loss_first"})) + " → " + Figure(Number(block, {"loss_best"})) +
           " · " + Seconds(Number(block, {"seconds"})) + "</p></div>\n";
  }
  if (out.empty()) return "";
  const bool fisher = Number(report, {"tuning", "fisher_tokens"}).value_or(0) > 0;
  const std::string kept = Text(report, {"tuning", "kept"});
  return Section(
      "Loss by block",
      std::string(fisher ? "Squared error of each block's output, weighted by the Fisher "
                           "metric (what it costs the whole model)"
                         : "Mean squared error of each block's output") +
          " while it was tuned: every step's batch (pale) and the best so far. " +
          (kept.empty() ? "" : "The " + Escape(kept) + " was kept. ") +
          "Each plot has its own scale.",
      "<div class=\"curves\">" + out + "</div>\n");
}

std::string VerdictCell(const std::string& verdict) {
  if (verdict == "loads") return "loads";
  if (verdict == "loads_with_remark") return "loads, with a remark";
  return verdict == "not_checked" ? "not checked" : "does not load";
}

// One row a format and loader, with what stands in the way or is to be known.
std::string Loaders(const Json& report) {
  std::string rows;
  for (const Json& format : Array(report, "loaders")) {
    const std::string name = Escape(Text(format, {"format"}));
    if (const std::string error = Text(format, {"error"}); !error.empty()) {
      rows += Row({name, "", "not checked", Escape(error)});
    }
    for (const Json& loader : Array(format, "loaders")) {
      std::vector<std::string> notes;
      if (const std::string needs = Text(loader, {"needs"}); !needs.empty()) {
        notes.push_back("Needs " + Escape(needs) + ".");
      }
      for (const char* kind : {"problems", "remarks"}) {
        for (const Json& sentence : Array(loader, kind)) {
          if (sentence.is_string()) notes.push_back(Escape(sentence.get<std::string>()));
        }
      }
      const std::string verdict = Text(loader, {"verdict"});
      const bool bad = verdict == "does_not_load";
      rows += "<tr><td>" + name + "</td><td>" + Escape(Text(loader, {"loader"})) +
              "</td><td style=\"color:var(--" + (bad ? "bad" : "good") + ")\">" +
              VerdictCell(verdict) + "</td><td>" + absl::StrJoin(notes, "<br>") + "</td></tr>\n";
    }
  }
  if (rows.empty()) return "";
  return Section("Where it loads",
                 "By the loaders' own rules over names, shapes and keys. `ptq-worker check` says "
                 "the same of any folder.",
                 Panel("<table class=\"loaders\">" +
                       Row({"format", "loader", "verdict", "notes"}, "th") + rows + "</table>"));
}

std::string Resources(const Json& report) {
  std::string out = "<table>" + Row({"phase", "time"}, "th");
  const auto seconds = [&report](const char* key) { return Number(report, {"timing", key}); };
  const auto add = [&](const char* phase, const char* key) {
    if (seconds(key)) out += Row({phase, Seconds(seconds(key))});
  };
  add("load", "load_seconds");
  if (seconds("fisher_seconds").value_or(0) > 0) add("Fisher pass", "fisher_seconds");
  add("observe", "observe_seconds");
  add("quantize", "quantize_seconds");
  if (seconds("search_seconds").value_or(0) > 0) {
    out += "<tr><td class=\"part\">of which search for scales</td><td>" +
           Seconds(seconds("search_seconds")) + "</td></tr>\n";
  }
  add("export", "export_seconds");
  add("evaluate", "evaluate_seconds");
  add("total", "total_seconds");
  out += Row({"peak host memory", Bytes(Number(report, {"memory", "host_peak_bytes"}))});
  if (Number(report, {"memory", "fisher_host_peak_bytes"}).value_or(0) > 0) {
    out += "<tr><td class=\"part\">until the Fisher pass was over</td><td>" +
           Bytes(Number(report, {"memory", "fisher_host_peak_bytes"})) + "</td></tr>\n";
  }
  if (Number(report, {"memory", "device_peak_bytes"}).value_or(0) > 0) {
    out += Row({"peak device memory", Bytes(Number(report, {"memory", "device_peak_bytes"}))});
  }
  return Section(
      "Time and memory",
      "Blocks are written while the next one is worked on: phases may add up to more than "
      "the total.",
      Panel(out + "</table>"));
}

std::string Provenance(const Json& report) {
  std::string out;
  if (const Json* spec = At(report, {"spec"})) {
    out += "<details open><summary>Effective job spec</summary>" +
           Panel("<pre>" + Escape(DumpJsonPretty(*spec)) + "</pre>") + "</details>\n";
  }
  std::string digests;
  const auto add = [&digests](const std::string& name, const Json& file) {
    digests += "<tr><td>" + Escape(name) + "</td><td class=\"digest\">" +
               Escape(Text(file, {"sha256"})) + "</td></tr>\n";
  };
  if (const Json* inputs = At(report, {"inputs"})) {
    for (const Json& file : Array(*inputs, "model")) add("model: " + Text(file, {"path"}), file);
    for (const char* role : {"calibration", "evaluation"}) {
      if (const Json* file = At(*inputs, {role})) add(role, *file);
    }
  }
  for (const Json& file : Array(report, "outputs")) add("output: " + Text(file, {"path"}), file);
  if (!digests.empty()) {
    out += "<details><summary>SHA-256 of inputs and outputs</summary>" +
           Panel("<table>" + digests + "</table>") + "</details>\n";
  }
  return Section("Provenance",
                 "ptqd " + Escape(Text(report, {"engine_version"})) +
                     ". The same spec and inputs on the same machine give the same bytes.",
                 out);
}

std::string Warnings(const Json& report) {
  std::string items;
  for (const Json& warning : Array(report, "warnings")) {
    items += "<li>" + Escape(warning.is_string() ? warning.get<std::string>() : DumpJson(warning)) +
             "</li>\n";
  }
  return items.empty() ? "" : "<ul class=\"warnings\">" + items + "</ul>\n";
}

// "converted from gptq to gguf · 1.2 B parameters in 16 blocks".
std::string ConversionTitle(const Json& report, const Json& conversion) {
  std::vector<std::string> formats;
  for (const Json& result : Array(conversion, "results")) {
    formats.push_back(Escape(Text(result, {"format"})));
  }
  return absl::StrFormat("converted from %s to %s · %s parameters in %s blocks",
                         Escape(Text(conversion, {"source", "format"})),
                         absl::StrJoin(formats, ", "),
                         Count(Number(report, {"model", "parameters"})),
                         Escape(Text(report, {"model", "block_count"})));
}

}  // namespace

std::string RenderHtmlReport(const Json& report) {
  // A server links every checkpoint as "model", which says nothing.
  std::string model = Text(report, {"model", "name"});
  if (model.empty() || model == "model") model = Text(report, {"model", "architecture"});
  const auto bits = Number(report, {"spec", "bits"});
  const std::string method = Text(report, {"spec", "algorithm"});
  const std::string group = Text(report, {"spec", "group_size"});
  const std::string kind =
      Text(report, {"spec", "asymmetric"}) == "true" ? "asymmetric" : "symmetric";
  const std::string recipe = Text(report, {"tuning", "recipe"});
  const std::string preset = Text(report, {"spec", "preset"});
  const std::string scheme = Text(report, {"spec", "scheme"});
  const Json* conversion = At(report, {"conversion"});
  const std::string subtitle =
      conversion != nullptr
          ? ConversionTitle(report, *conversion)
          : absl::StrFormat("%s, %s bits, group size %s, %s · %s parameters in %s blocks, %s",
                            Escape((recipe.empty() ? method : method + ", " + recipe + " recipe") +
                                   (!preset.empty()   ? ", preset " + preset
                                    : !scheme.empty() ? ", " + scheme
                                                      : "")),
                            bits ? absl::StrFormat("%.0f", *bits) : "?", Escape(group), kind,
                            Count(Number(report, {"model", "parameters"})),
                            Escape(Text(report, {"model", "block_count"})),
                            Escape(Text(report, {"model", "dtype"})));
  return "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
         "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>" +
         Escape(model) + (conversion != nullptr ? ": conversion" : ": quantization") +
         " report</title>\n<style>" + kStyle + "</style></head>\n<body><main>\n<h1>" +
         Escape(model) + "</h1>\n<p class=\"note\">" + subtitle + "</p>\n" + SummaryCards(report) +
         Warnings(report) + Evaluation(report) + KldHistogram(report) + Tuning(report) +
         LossCurves(report) + ErrorAgainstRtn(report) + BitsMap(report) + OutsideOfBlocks(report) +
         ExpertTokens(report) + ModuleTable(report) + Loaders(report) + Resources(report) +
         Provenance(report) + "</main></body></html>\n";
}

}  // namespace ptq
