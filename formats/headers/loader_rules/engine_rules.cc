#include "formats/headers/loader_rules/engine_rules.h"

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "formats/headers/loader_rules/fused_sets.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

std::string Text(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

// ModelRegistry of both resolves config.json's architectures.
void CheckArchitectures(const LoadedFolder& folder, const char* engine, Findings* findings) {
  const Json architectures = folder.config.value("architectures", Json(nullptr));
  if (architectures.is_array() && !architectures.empty() && architectures[0].is_string()) return;
  findings->Refuse("config.json",
                   absl::StrFormat("has no architectures, by which %s chooses the model's code; "
                                   "take the key from the original model",
                                   engine));
}

// GPTQ's and AWQ's scales are float16, and the kernels compute in the model's dtype.
void CheckScales(const LoadedFolder& folder, const char* engine, Findings* findings) {
  if (folder.method != "gptq" && folder.method != "awq") return;
  const std::string dtype = folder.config.contains("dtype") ? Text(folder.config, "dtype")
                                                            : Text(folder.config, "torch_dtype");
  if (dtype != "bfloat16") return;
  findings->Remark("config.json",
                   absl::StrFormat("dtype is bfloat16, so %s rounds the float16 scales once more; "
                                   "set \"dtype\": \"float16\"",
                                   engine));
}

struct DynamicRule {
  NamePattern pattern;
  bool skip = false;
  const Json* settings = nullptr;
};

// The first rule that matches: its position, or nullopt.
std::optional<size_t> FirstMatch(const std::vector<DynamicRule>& rules, const std::string& module) {
  for (size_t i = 0; i < rules.size(); ++i) {
    if (rules[i].pattern.MatchesStart(module)) return i;
  }
  return std::nullopt;
}

// Whether two rules, or none, say the same of a layer.
bool SameEffect(const std::vector<DynamicRule>& rules, std::optional<size_t> a,
                std::optional<size_t> b) {
  if (a == b) return true;
  if (!a || !b) return false;
  return rules[*a].skip == rules[*b].skip && *rules[*a].settings == *rules[*b].settings;
}

}  // namespace

void CheckEngineFolder(const LoadedFolder& folder, const char* engine, Findings* findings) {
  CheckArchitectures(folder, engine, findings);
  if (!folder.has_tokenizer) {
    findings->Refuse("",
                     absl::StrFormat("The folder has no tokenizer, which %s reads from it: copy "
                                     "tokenizer.json and its like from the original model, or "
                                     "start the server with a tokenizer's path.",
                                     engine));
  }
  for (const std::string& name : folder.stray_tensors) {
    const bool tied = name == "lm_head.weight";  // both skip it where the head is tied
    if (tied) {
      findings->Remark(name,
                       "tie_word_embeddings is true, so the tensor is left out; write the "
                       "model without it");
    } else {
      // AutoWeightsLoader, and load_weights' params_dict[name].
      findings->Refuse(Quote(name),
                       absl::StrFormat("the model has no such tensor, and %s fails on names that "
                                       "it does not know; write the model without it",
                                       engine));
    }
  }
  CheckScales(folder, engine, findings);
}

void RequireKeys(const LoadedFolder& folder, const std::vector<std::string>& keys,
                 const char* engine, Findings* findings) {
  for (const std::string& key : keys) {
    if (folder.quantization.contains(key)) continue;
    findings->Refuse("config.json",
                     absl::StrFormat("quantization_config has no %s, and %s reads it without a "
                                     "default; add the key",
                                     key, engine));
  }
}

void CheckFusedDynamic(const LoadedFolder& folder, const char* engine, bool infers_plain,
                       Findings* findings) {
  const auto dynamic = folder.quantization.find("dynamic");
  if (dynamic == folder.quantization.end() || !dynamic->is_object() || dynamic->empty()) return;
  std::vector<DynamicRule> rules;
  for (const auto& [key, settings] : dynamic->items()) {
    const bool skip = absl::StartsWith(key, "-:");
    const bool prefixed = skip || absl::StartsWith(key, "+:");
    rules.push_back({NamePattern(prefixed ? key.substr(2) : key), skip, &settings});
  }
  std::vector<std::string> modules;
  if (!infers_plain) modules = folder.plain_linears;
  for (const QuantizedLayer& layer : folder.layers) modules.push_back(layer.module);
  std::set<std::string> told;
  for (const std::string& module : modules) {
    const auto set = FusedSetOf(module);
    if (!set || SameEffect(rules, FirstMatch(rules, module), FirstMatch(rules, set->module))) {
      continue;
    }
    if (!told.insert(set->module).second) continue;
    findings->Refuse(set->module,
                     absl::StrFormat("%s matches \"dynamic\" against this fused name, and finds "
                                     "another scheme than for %s; write rules that match both",
                                     engine, set->members));
  }
}

void CheckAutoRoundPacking(const LoadedFolder& folder, const char* engine, Findings* findings) {
  const std::string packing = Text(folder.quantization, "packing_format");
  if (packing.empty() || packing == "auto_round:auto_gptq" || packing == "auto_round:auto_awq") {
    return;
  }
  findings->Refuse("config.json",
                   absl::StrFormat("packing_format %s is none that %s reads (auto_round:auto_gptq, "
                                   "auto_round:auto_awq); write awq for asymmetric 4 bits, or "
                                   "compressed-tensors",
                                   Quote(packing), engine));
}

}  // namespace ptq
