#include "formats/module_pattern.h"

#include <re2/re2.h>

#include "common/status_macros.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

absl::StatusOr<bool> Matches(const std::string& pattern, const std::string& module,
                             RE2::Anchor anchor) {
  RE2::Options options;
  options.set_log_errors(false);
  const RE2 expression(pattern, options);
  if (!expression.ok()) {
    return absl::InvalidArgumentError("quantization_config: the pattern " + Quote(pattern) +
                                      " can't be used: " + expression.error());
  }
  return expression.Match(module, 0, module.size(), anchor, nullptr, 0);
}

}  // namespace

absl::StatusOr<bool> MatchesBeginning(const std::string& pattern, const std::string& module) {
  return Matches(pattern, module, RE2::ANCHOR_START);
}

absl::StatusOr<bool> MatchesAnywhere(const std::string& pattern, const std::string& module) {
  return Matches(pattern, module, RE2::UNANCHORED);
}

std::string ExactPattern(const std::string& module) {
  std::string pattern = "^";
  for (const char c : module) {
    if (c == '.') pattern += '\\';
    pattern += c;
  }
  return pattern + "$";
}

}  // namespace ptq
