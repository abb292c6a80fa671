#include "worker/html.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"

namespace ptq::html {

std::string Escape(const std::string& text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

const Json* At(const Json& json, std::initializer_list<const char*> path) {
  const Json* here = &json;
  for (const char* key : path) {
    if (!here->is_object()) return nullptr;
    const auto it = here->find(key);
    if (it == here->end() || it->is_null()) return nullptr;
    here = &*it;
  }
  return here;
}

std::optional<double> Number(const Json& json, std::initializer_list<const char*> path) {
  const Json* value = At(json, path);
  if (value == nullptr || !value->is_number()) return std::nullopt;
  return value->get<double>();
}

std::string Text(const Json& json, std::initializer_list<const char*> path) {
  const Json* value = At(json, path);
  if (value == nullptr) return "";
  return value->is_string() ? value->get<std::string>() : DumpJson(*value);
}

const Json& Array(const Json& json, const char* key) {
  static const Json* const kEmpty = new Json(Json::array());
  const Json* value = At(json, {key});
  return value != nullptr && value->is_array() ? *value : *kEmpty;
}

std::string Figure(std::optional<double> value) {
  if (!value) return "–";
  const double magnitude = std::fabs(*value);
  if (magnitude == 0) return "0";
  if (magnitude < 1e-4 || magnitude >= 1e7) return absl::StrFormat("%.2e", *value);
  const int digits = std::clamp(3 - static_cast<int>(std::floor(std::log10(magnitude))), 0, 6);
  return absl::StrFormat("%.*f", digits, *value);
}

std::string Bytes(std::optional<double> bytes) {
  if (!bytes) return "–";
  if (*bytes >= 1e9) return absl::StrFormat("%.2f GB", *bytes / 1e9);
  if (*bytes >= 1e6) return absl::StrFormat("%.1f MB", *bytes / 1e6);
  return absl::StrFormat("%.0f kB", *bytes / 1e3);
}

std::string Count(std::optional<double> count) {
  if (!count) return "–";
  if (*count >= 1e9) return absl::StrFormat("%.2f B", *count / 1e9);
  if (*count >= 1e6) return absl::StrFormat("%.2f M", *count / 1e6);
  return absl::StrFormat("%.0f", *count);
}

std::string Seconds(std::optional<double> seconds) {
  if (!seconds) return "–";
  if (*seconds >= 3600) return absl::StrFormat("%.1f h", *seconds / 3600);
  if (*seconds >= 120) return absl::StrFormat("%.1f min", *seconds / 60);
  return absl::StrFormat("%.1f s", *seconds);
}

std::string Percent(std::optional<double> value) {
  return value ? absl::StrFormat("%.2f %%", 100 * *value) : "–";
}

std::string Card(const std::string& value, const std::string& label) {
  return "<div class=\"card\"><b>" + value + "</b><span>" + label + "</span></div>\n";
}

std::string Row(const std::vector<std::string>& cells, const char* tag) {
  std::string out = "<tr>";
  for (const std::string& cell : cells) out += absl::StrFormat("<%s>%s</%s>", tag, cell, tag);
  return out + "</tr>\n";
}

std::string Section(const std::string& title, const std::string& note, const std::string& body) {
  return "<h2>" + title + "</h2>\n" + (note.empty() ? "" : "<p class=\"note\">" + note + "</p>\n") +
         body;
}

std::string Panel(const std::string& body) {
  return "<div class=\"panel scroll\">" + body + "</div>\n";
}

}  // namespace ptq::html
