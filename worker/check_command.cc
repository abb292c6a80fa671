#include "worker/check_command.h"

#include <algorithm>
#include <iostream>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/json.h"
#include "common/status_util.h"

namespace ptq {
namespace {

const char* Words(Verdict verdict) {
  switch (verdict) {
    case Verdict::kLoads:
      return "loads";
    case Verdict::kLoadsWithRemark:
      return "loads, with a remark";
    case Verdict::kNotChecked:
      return "not checked";
    case Verdict::kDoesNotLoad:
      return "does not load";
  }
  return "";
}

bool Loads(const LoaderVerdict& verdict) {
  return verdict.verdict == Verdict::kLoads || verdict.verdict == Verdict::kLoadsWithRemark;
}

bool IsAsked(const std::vector<Loader>& loaders, Loader loader) {
  return loaders.empty() || std::find(loaders.begin(), loaders.end(), loader) != loaders.end();
}

}  // namespace

std::string FolderCheckText(const std::string& path, const FolderCheck& check,
                            const std::vector<Loader>& loaders) {
  std::string text =
      absl::StrFormat("%s: %s, %d quantized %s\n\n", path,
                      check.method == "none" ? std::string("plain weights") : check.method,
                      check.quantized_layers, check.method == "gguf" ? "tensors" : "layers");
  for (const LoaderVerdict& verdict : check.verdicts) {
    if (!IsAsked(loaders, verdict.loader)) continue;
    text += absl::StrFormat("%-14s%s%s\n", LoaderName(verdict.loader), Words(verdict.verdict),
                            verdict.needs.empty() ? "" : " (needs " + verdict.needs + ")");
    for (const std::string& problem : verdict.problems) text += "  ! " + problem + "\n";
    for (const std::string& remark : verdict.remarks) text += "  - " + remark + "\n";
  }
  return text;
}

int RunCheck(const CheckOptions& options) {
  const absl::StatusOr<FolderCheck> check = CheckFolder(options.path);
  if (!check.ok()) {
    std::cerr << "ptq-worker check: " << Message(check.status()) << std::endl;
    return 2;
  }
  Json json = FolderCheckToJson(*check);
  std::erase_if(json["loaders"].get_ref<Json::array_t&>(), [&options](const Json& entry) {
    return !IsAsked(options.loaders, *ParseLoader(entry["loader"].get<std::string>()));
  });
  std::cout << (options.json ? DumpJsonPretty(json)
                             : FolderCheckText(options.path, *check, options.loaders))
            << std::flush;
  const auto loads = [&options](const LoaderVerdict& verdict) {
    return IsAsked(options.loaders, verdict.loader) && Loads(verdict);
  };
  const auto count = std::count_if(check->verdicts.begin(), check->verdicts.end(), loads);
  const auto wanted =
      std::max<std::ptrdiff_t>(1, std::count_if(check->verdicts.begin(), check->verdicts.end(),
                                                [&options](const LoaderVerdict& verdict) {
                                                  return !options.loaders.empty() &&
                                                         IsAsked(options.loaders, verdict.loader);
                                                }));
  return count >= wanted ? 0 : 1;
}

}  // namespace ptq
