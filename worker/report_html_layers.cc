#include "worker/report_html_layers.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "formats/headers/quote.h"
#include "worker/html.h"

namespace ptq {
namespace {

using html::Array;
using html::At;
using html::Count;
using html::Escape;
using html::Figure;
using html::Number;
using html::Panel;
using html::Percent;
using html::Row;
using html::Section;
using html::Text;

// "self_attn.q_proj" of "model.layers.3.self_attn.q_proj", given the block's "model.layers.3".
std::string ShortName(const std::string& module, const std::string& block) {
  return module.rfind(block + ".", 0) == 0 ? module.substr(block.size() + 1) : module;
}

// 7 of "mlp.experts.7.up_proj"; none for a layer that is not part of a routed expert.
std::optional<int64_t> ExpertOf(const std::string& layer) {
  constexpr std::string_view kExperts = ".experts.";
  const size_t found = layer.find(kExperts);
  int64_t expert = 0;
  if (found == std::string::npos ||
      !absl::SimpleAtoi(
          layer.substr(found + kExperts.size(),
                       layer.find('.', found + kExperts.size()) - found - kExperts.size()),
          &expert)) {
    return std::nullopt;
  }
  return expert;
}

// Background and text colour for a ratio to RTN on a log scale: green where better, orange where
// worse.
std::string RatioStyle(double ratio) {
  const double strength = std::min(1.0, std::fabs(std::log2(std::max(ratio, 1e-6))) / 2.0);
  const int alpha = static_cast<int>(8 + 72 * strength);
  return absl::StrFormat(" style=\"background:color-mix(in srgb,var(--%s) %d%%,var(--card))\"",
                         ratio <= 1 ? "good" : "bad", alpha);
}

std::string BitsStyle(int64_t bits) {
  // Darker is more bits; 2..8.
  const int64_t share = std::clamp<int64_t>((bits - 1) * 12, 8, 90);
  return absl::StrFormat(" style=\"background:color-mix(in srgb,var(--accent) %d%%,var(--card))\"",
                         share);
}

// One row a block, one column a module; `cell` gives a <td> for a module. Routed experts would be
// hundreds of columns: the table of all layers has them.
template <typename Cell>
std::string ModuleGrid(const Json& blocks, Cell cell) {
  std::vector<std::string> columns;
  for (const Json& block : blocks) {
    for (const Json& module : Array(block, "modules")) {
      const std::string name = ShortName(Text(module, {"name"}), Text(block, {"name"}));
      if (ExpertOf(name).has_value()) continue;
      if (std::find(columns.begin(), columns.end(), name) == columns.end()) columns.push_back(name);
    }
  }
  if (columns.empty()) return "";
  std::string out = "<table class=\"grid\"><tr><th></th>";
  for (const std::string& column : columns) {
    const size_t dot = column.rfind('.');
    std::string label = dot == std::string::npos ? column : column.substr(dot + 1);
    out += "<th title=\"" + Escape(column) + "\">" + Escape(label) + "</th>";
  }
  out += "</tr>\n";
  for (const Json& block : blocks) {
    const std::string name = Text(block, {"name"});
    const size_t prefix = name.find('.');
    out += "<tr><td title=\"" + Escape(name) + "\">" +
           Escape(prefix == std::string::npos ? name : name.substr(prefix + 1)) + "</td>";
    std::map<std::string, const Json*> modules;
    for (const Json& module : Array(block, "modules")) {
      modules[ShortName(Text(module, {"name"}), name)] = &module;
    }
    for (const std::string& column : columns) {
      const auto found = modules.find(column);
      out += found == modules.end() ? "<td></td>" : cell(*found->second);
    }
    out += "</tr>\n";
  }
  return out + "</table>";
}

// "4", or the name of a K-quant.
std::string WidthOf(const Json& module) {
  const std::string scheme = Text(module, {"scheme"});
  if (!scheme.empty()) return Escape(scheme);
  const auto bits = Number(module, {"bits"});
  return bits ? absl::StrFormat("%.0f", *bits) : "–";
}

std::string ModuleRows(const Json& modules, bool measured) {
  std::string rows;
  for (const Json& module : modules) {
    std::vector<std::string> cells = {Escape(Text(module, {"name"})), WidthOf(module),
                                      Escape(Text(module, {"group_size"})),
                                      Text(module, {"symmetric"}) == "false" ? "yes" : "no"};
    if (measured) {
      cells.insert(
          cells.end(),
          {Figure(Number(module, {"output_mse"})), Percent(Number(module, {"relative_error"})),
           Figure(Number(module, {"rtn_output_mse"})), Count(Number(module, {"tokens"})),
           Escape(Text(module, {"fallback_reason"}))});
    }
    rows += Row(cells);
  }
  return rows;
}

std::string TableOfModules(const std::string& rows, bool measured) {
  std::vector<std::string> heads = {"layer", "bits", "group", "zero points"};
  if (measured) {
    heads.insert(heads.end(), {"output MSE", "relative", "by rtn", "tokens", "fallback"});
  }
  return Panel("<table>" + Row(heads, "th") + rows + "</table>");
}

// A conversion measures nothing.
bool IsMeasured(const Json& report) { return At(report, {"conversion"}) == nullptr; }

}  // namespace

std::string ErrorAgainstRtn(const Json& report) {
  bool any = false;
  bool fallback = false;
  const std::string grid = ModuleGrid(Array(report, "blocks"), [&](const Json& module) {
    const auto error = Number(module, {"output_mse"});
    const auto rtn = Number(module, {"rtn_output_mse"});
    if (!error || !rtn || *rtn <= 0) return std::string("<td>–</td>");
    any = true;
    const bool fell_back = !Text(module, {"fallback_reason"}).empty();
    fallback = fallback || fell_back;
    const double ratio = *error / *rtn;
    return absl::StrFormat("<td%s title=\"%s: output error %s, by rtn %s\">%.2f%s</td>",
                           RatioStyle(ratio), Escape(Text(module, {"name"})), Figure(error),
                           Figure(rtn), ratio, fell_back ? " *" : "");
  });
  if (!any) return "";
  return Section(
      "Layer errors against round-to-nearest",
      absl::StrFormat(
          "Mean squared error of each layer's output on %.0f tokens of the calibration text, "
          "divided by what plain rounding gives: below 1 is better. Block-wise tuning may trade "
          "one layer for another.",
          Number(report, {"calibration", "error_tokens"}).value_or(0)),
      Panel(grid) +
          "<div class=\"legend\"><span><i style=\"background:var(--good)\"></i>better than "
          "rtn</span>"
          "<span><i style=\"background:var(--bad)\"></i>worse</span>" +
          (fallback ? "<span>* fell back, see the table of all layers</span>" : "") + "</div>\n");
}

std::string BitsMap(const Json& report) {
  const std::string grid = ModuleGrid(Array(report, "blocks"), [](const Json& module) {
    const auto bits = Number(module, {"bits"});
    if (!bits) return std::string("<td title=\"left in its own dtype\">–</td>");
    const auto group = Number(module, {"group_size"}).value_or(0);
    const std::string groups = group > 0   ? absl::StrFormat("g%.0f", group)
                               : group < 0 ? "channel"
                                           : "tensor";
    const Json* symmetric = At(module, {"symmetric"});
    const bool is_symmetric =
        symmetric == nullptr || !symmetric->is_boolean() || symmetric->get<bool>();
    const std::string scheme = Text(module, {"scheme"});
    return absl::StrFormat("<td%s title=\"%s: %s%.0f bits, %s, %s\">%s</td>",
                           BitsStyle(static_cast<int64_t>(*bits)), Escape(Text(module, {"name"})),
                           scheme.empty() ? "" : Escape(scheme) + ", ", *bits, groups,
                           is_symmetric ? "symmetric" : "asymmetric", WidthOf(module));
  });
  if (grid.empty()) return "";
  return Section("Bits", "Width of each quantized layer; – is left in its own dtype.", Panel(grid));
}

std::string ExpertTokens(const Json& report) {
  std::string rows;
  for (const Json& block : Array(report, "blocks")) {
    std::map<int64_t, double> tokens;  // by expert; its layers see the same ones
    for (const Json& module : Array(block, "modules")) {
      const auto expert = ExpertOf(Text(module, {"name"}));
      const auto seen = Number(module, {"tokens"});
      if (expert && seen) tokens[*expert] = *seen;
    }
    if (tokens.empty()) continue;
    std::vector<double> sorted;
    std::vector<std::string> unreached;
    for (const auto& [expert, seen] : tokens) {
      sorted.push_back(seen);
      if (seen == 0) unreached.push_back(std::to_string(expert));
    }
    std::sort(sorted.begin(), sorted.end());
    rows +=
        Row({Escape(Text(block, {"name"})), std::to_string(tokens.size()), Count(sorted.front()),
             Count(sorted[sorted.size() / 2]), Count(sorted.back()), ListSome(unreached, 16)});
  }
  if (rows.empty()) return "";
  return Section(
      "Experts",
      "Calibration tokens that reached each block's routed experts. One that none reached is "
      "rounded by opt-rtn with all columns alike; more calibration text may reach it.",
      Panel("<table>" +
            Row({"block", "experts", "least", "median", "most tokens", "never reached"}, "th") +
            rows + "</table>"));
}

std::string ModuleTable(const Json& report) {
  const bool measured = IsMeasured(report);
  std::string rows;
  for (const Json& block : Array(report, "blocks")) {
    rows += ModuleRows(Array(block, "modules"), measured);
  }
  if (rows.empty()) return "";
  return "<details><summary>All layers</summary>" + TableOfModules(rows, measured) + "</details>\n";
}

std::string OutsideOfBlocks(const Json& report) {
  const bool measured = IsMeasured(report);
  const std::string rows = ModuleRows(Array(report, "outside_of_blocks"), measured);
  if (rows.empty()) return "";
  return Section("Outside of the blocks",
                 "Embedding and head are quantized where a rule names them.",
                 TableOfModules(rows, measured));
}

}  // namespace ptq
