#include "worker/spec/scheme_rules.h"

#include <re2/re2.h>
#include <re2/set.h>

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/headers/format_rules.h"
#include "formats/headers/loader_rules/planned_rules.h"
#include "formats/headers/quote.h"
#include "worker/spec/presets.h"

namespace ptq {
namespace {

constexpr size_t kMaxPatternBytes = 4096;
constexpr int64_t kMaxGroupSize = 1 << 20;
constexpr int64_t kSetMemoryBytes = 256 << 20;

RE2::Options PatternOptions() {
  RE2::Options options;
  options.set_log_errors(false);
  return options;
}

absl::Status BadRule(const std::string& text, const std::string& why) {
  return absl::InvalidArgumentError("rule " + Quote(text) + ": " + why);
}

// One "key=value" of a rule.
absl::Status ParseSetting(const std::string& text, const std::string& setting, SchemeRule* rule) {
  const std::pair<std::string, std::string> pair = absl::StrSplit(setting, absl::MaxSplits('=', 1));
  const auto& [key, value] = pair;
  const auto repeated = [&](bool is) {
    return is ? BadRule(text, key + " is given twice") : absl::OkStatus();
  };
  if (key == "bits") {
    PTQ_RETURN_IF_ERROR(repeated(rule->bits.has_value()));
    int bits = 0;
    if (!absl::SimpleAtoi(value, &bits) || bits < 2 || bits > 8) {
      return BadRule(text, "bits: " + Quote(value) + " is not in 2..8");
    }
    rule->bits = bits;
    return absl::OkStatus();
  }
  if (key == "group_size") {
    PTQ_RETURN_IF_ERROR(repeated(rule->group_size.has_value()));
    int64_t group_size = 0;
    if (!absl::SimpleAtoi(value, &group_size) || group_size < QuantizationScheme::kPerChannel ||
        group_size > kMaxGroupSize) {
      return BadRule(
          text, absl::StrFormat("group_size: %s is neither -1 (channel), 0 (tensor) nor in 1..%d",
                                Quote(value), kMaxGroupSize));
    }
    rule->group_size = group_size;
    return absl::OkStatus();
  }
  if (key == "symmetric") {
    PTQ_RETURN_IF_ERROR(repeated(rule->symmetric.has_value()));
    if (value != "true" && value != "false") {
      return BadRule(text, "symmetric: " + Quote(value) + " is neither true nor false");
    }
    rule->symmetric = value == "true";
    return absl::OkStatus();
  }
  if (key == "scheme") {
    PTQ_RETURN_IF_ERROR(repeated(rule->k_quant != KQuant::kNone));
    const auto type = ParseKQuant(value);
    if (!type.ok()) return BadRule(text, "scheme: " + Message(type.status()));
    rule->k_quant = *type;
    return absl::OkStatus();
  }
  return BadRule(text, "unknown setting " + Quote(setting) +
                           "; use bits=, group_size=, symmetric=, scheme= or skip");
}

// All patterns in one automaton, so that a rule for every layer of a large model costs one pass
// over each name. Patterns that need too much memory together are matched one by one.
class RuleMatcher {
 public:
  explicit RuleMatcher(const std::vector<SchemeRule>& rules)
      : rules_(rules), set_(SetOptions(), RE2::ANCHOR_BOTH) {
    bool compiled = !rules.empty();
    for (const SchemeRule& rule : rules) {
      compiled = compiled && set_.Add(rule.pattern, nullptr) >= 0;
    }
    if (!compiled || !set_.Compile()) MatchOneByOne();
  }

  // Indices of the rules that match `name`, ascending.
  std::vector<int> Match(const std::string& name) {
    std::vector<int> matches;
    if (!one_by_one_) {
      RE2::Set::ErrorInfo error;
      if (set_.Match(name, &matches, &error)) {
        std::sort(matches.begin(), matches.end());
        return matches;
      }
      if (error.kind == RE2::Set::kNoError) return {};
      MatchOneByOne();
      matches.clear();
    }
    for (size_t i = 0; i < patterns_.size(); ++i) {
      if (RE2::FullMatch(name, *patterns_[i])) matches.push_back(static_cast<int>(i));
    }
    return matches;
  }

 private:
  static RE2::Options SetOptions() {
    RE2::Options options = PatternOptions();
    options.set_max_mem(kSetMemoryBytes);
    return options;
  }
  void MatchOneByOne() {
    one_by_one_ = true;
    for (const SchemeRule& rule : rules_) {
      patterns_.push_back(std::make_unique<RE2>(rule.pattern, PatternOptions()));
    }
  }

  const std::vector<SchemeRule>& rules_;
  RE2::Set set_;
  bool one_by_one_ = false;
  std::vector<std::unique_ptr<RE2>> patterns_;
};

QuantizationScheme Apply(const SchemeRule& rule, QuantizationScheme scheme) {
  if (rule.k_quant != KQuant::kNone) return KQuantScheme(rule.k_quant);
  // Such a rule names bits and group size (ValidateJobSpec).
  if (scheme.k_quant != KQuant::kNone) scheme = {.symmetric = true};
  if (rule.bits.has_value()) scheme.bits = *rule.bits;
  if (rule.group_size.has_value()) scheme.group_size = *rule.group_size;
  if (rule.symmetric.has_value()) scheme.symmetric = *rule.symmetric;
  return scheme;
}

// "model.layers." and ".mlp.down_proj": a layer's name around its block's number.
struct LayerKind {
  std::string before;
  std::string after;
  auto operator<=>(const LayerKind&) const = default;
};

LayerKind KindOf(const EffectiveScheme& layer) {
  const std::string number = "." + std::to_string(layer.block) + ".";
  const size_t at = layer.module.find(number);
  if (at == std::string::npos) return {layer.module, ""};
  return {layer.module.substr(0, at + 1), layer.module.substr(at + number.size() - 1)};
}

// The layers of one kind, in the blocks of `numbers` or, where that is empty, in all.
std::string Spell(const LayerKind& kind, const std::string& numbers, bool as_pattern) {
  if (kind.after.empty()) return as_pattern ? RE2::QuoteMeta(kind.before) : kind.before;
  if (!as_pattern) return kind.before + (numbers.empty() ? "*" : "{" + numbers + "}") + kind.after;
  const std::string middle = numbers.empty() ? "\\d+" : "(" + numbers + ")";
  return RE2::QuoteMeta(kind.before) + middle + RE2::QuoteMeta(kind.after);
}

// Empty without a preset, and for one of a single width.
absl::StatusOr<std::vector<SchemeRule>> RulesOfPreset(const JobSpec& spec,
                                                      const std::vector<TableTensor>& table) {
  std::vector<SchemeRule> rules;
  if (spec.preset.empty()) return rules;
  PTQ_ASSIGN_OR_RETURN(const Preset preset, FindPreset(spec.preset));
  int64_t block_count = 0;
  for (const TableTensor& tensor : table) block_count = std::max(block_count, tensor.block + 1);
  for (const std::string& text : PresetRules(preset, block_count)) {
    PTQ_ASSIGN_OR_RETURN(SchemeRule rule, ParseSchemeRule(text));
    rules.push_back(std::move(rule));
  }
  return rules;
}

// Of a layer whose rows are no whole super-blocks what llama.cpp falls back to
// (src/llama-quant.cpp), Q4_0 in place of its IQ4_NL of the same size; none where no type of GGUF
// fits.
std::optional<QuantizationScheme> WithoutSuperBlocks(KQuant type, int64_t in_features) {
  constexpr int64_t kGroup = 32;
  if (in_features % kGroup != 0) return std::nullopt;
  switch (type) {
    case KQuant::kQ6_K:
      return QuantizationScheme{.bits = 8, .group_size = kGroup};
    case KQuant::kQ5_K:
      return QuantizationScheme{.bits = 5, .group_size = kGroup, .symmetric = false};
    case KQuant::kQ4_K:
      return QuantizationScheme{.bits = 5, .group_size = kGroup};
    default:
      return QuantizationScheme{.bits = 4, .group_size = kGroup};
  }
}

// Layers by kind, with the blocks in which they are.
using LayersByKind = std::map<LayerKind, std::vector<int64_t>>;

// Both spellings of `layers`: for a sentence, and as patterns of a rule.
void SpellAll(const LayersByKind& layers, int64_t block_count, std::vector<std::string>* names,
              std::vector<std::string>* patterns) {
  for (const auto& [kind, blocks] : layers) {
    const bool all = static_cast<int64_t>(blocks.size()) == block_count;
    names->push_back(Spell(kind, all ? "" : absl::StrJoin(blocks, ","), false));
    patterns->push_back(Spell(kind, all ? "" : absl::StrJoin(blocks, "|"), true));
  }
}

absl::Status CheckSuperBlocks(const std::vector<EffectiveScheme>& layers) {
  LayersByKind misfits;
  const EffectiveScheme* first = nullptr;
  int64_t block_count = 0;
  for (const EffectiveScheme& layer : layers) {
    block_count = std::max(block_count, layer.block + 1);
    if (!layer.scheme || layer.scheme->k_quant == KQuant::kNone) continue;
    if (layer.in_features % kSuperBlock == 0) continue;
    if (first == nullptr) first = &layer;
    misfits[KindOf(layer)].push_back(layer.block);
  }
  if (first == nullptr) return absl::OkStatus();
  std::vector<std::string> names;
  std::vector<std::string> patterns;
  SpellAll(misfits, block_count, &names, &patterns);
  return absl::InvalidArgumentError(absl::StrFormat(
      "scheme: %s has super-blocks of %d columns, which do not divide in_features %d of %s; give "
      "these layers another scheme by a first --rule '%s:bits=5,group_size=32', or leave them "
      "alone "
      "by skip",
      KQuantName(first->scheme->k_quant), kSuperBlock, first->in_features,
      absl::StrJoin(names, ", "), absl::StrJoin(patterns, "|")));
}

absl::Status CheckGroupSizes(const std::vector<EffectiveScheme>& layers) {
  struct Sizes {
    int64_t group_size;
    int64_t in_features;
    auto operator<=>(const Sizes&) const = default;
  };
  std::map<Sizes, LayersByKind> misfits;
  int64_t block_count = 0;
  for (const EffectiveScheme& layer : layers) {
    if (layer.place == ModulePlace::kBlock) block_count = std::max(block_count, layer.block + 1);
    if (!layer.scheme.has_value()) continue;
    const int64_t group_size = layer.scheme->group_size;
    if (group_size <= 0 || layer.in_features % group_size == 0) continue;
    misfits[{group_size, layer.in_features}][KindOf(layer)].push_back(layer.block);
  }
  if (misfits.empty()) return absl::OkStatus();
  std::vector<std::string> complaints;
  std::vector<std::string> patterns;
  for (const auto& [sizes, kinds] : misfits) {
    std::vector<std::string> names;
    SpellAll(kinds, block_count, &names, &patterns);
    complaints.push_back(
        absl::StrFormat("group_size %d does not divide in_features %d of %s (but %d does)",
                        sizes.group_size, sizes.in_features, absl::StrJoin(names, ", "),
                        std::gcd(sizes.group_size, sizes.in_features)));
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("%s; choose another group size, or leave these layers alone by a first "
                      "--rule '%s:skip'",
                      absl::StrJoin(complaints, "; "), absl::StrJoin(patterns, "|")));
}

// Whether `rule`, which matches the embedding or head `module`, means it, and not whatever there
// is: with another last part the name would not match.
bool Names(const SchemeRule& rule, const std::string& module) {
  const size_t dot = module.rfind('.');
  const std::string other =
      (dot == std::string::npos ? "" : module.substr(0, dot + 1)) + "no_such_layer";
  return !RE2::FullMatch(other, RE2(rule.pattern, PatternOptions()));
}

// What `rule` of a model without a head of its own may have been meant for: "lm_head", or "".
std::string MissingHead(const SchemeRule& rule) {
  const RE2 pattern(rule.pattern, PatternOptions());
  for (const char* head : {"lm_head", "embed_out"}) {
    if (RE2::FullMatch(head, pattern)) return head;
  }
  return "";
}

// Vocabularies are quantized in pieces of rows, which one scale for all would tie together.
absl::Status CheckVocabularies(const std::vector<EffectiveScheme>& layers) {
  for (const EffectiveScheme& layer : layers) {
    if (layer.place == ModulePlace::kBlock || !layer.scheme) continue;
    if (layer.scheme->group_size != QuantizationScheme::kPerTensor) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("rule: one scale for the whole of %s (group_size 0): embedding and head "
                        "take a group size or -1, one scale a row; add group_size= to its rule",
                        layer.module));
  }
  return absl::OkStatus();
}

absl::Status CheckFormats(const JobSpec& spec, const std::vector<EffectiveScheme>& layers) {
  std::vector<PlannedModule> modules;
  for (const EffectiveScheme& layer : layers) {
    if (!layer.scheme) continue;
    modules.push_back({.module = layer.module,
                       .out_features = layer.out_features,
                       .in_features = layer.in_features,
                       .scheme = *layer.scheme,
                       .transposed = layer.transposed,
                       .place = layer.place});
  }
  for (const std::string& format : spec.format) {
    PTQ_RETURN_IF_ERROR(CheckFormatHolds(format, modules));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SchemeRule> ParseSchemeRule(const std::string& text) {
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos) {
    return BadRule(text, "expected PATTERN:skip or PATTERN:bits=8,group_size=32");
  }
  SchemeRule rule;
  rule.pattern = text.substr(0, colon);
  if (rule.pattern.empty()) return BadRule(text, "the pattern before ':' is empty");
  if (rule.pattern.size() > kMaxPatternBytes) {
    return BadRule(text, absl::StrFormat("the pattern has more than %d bytes", kMaxPatternBytes));
  }
  const RE2 pattern(rule.pattern, PatternOptions());
  if (!pattern.ok()) {
    return BadRule(text, "the pattern is not valid RE2 syntax: " + pattern.error());
  }
  const std::string settings = text.substr(colon + 1);
  if (settings == "skip") {
    rule.skip = true;
    return rule;
  }
  for (const std::string& setting :
       std::vector<std::string>(absl::StrSplit(settings, absl::ByChar(',')))) {
    PTQ_RETURN_IF_ERROR(ParseSetting(text, setting, &rule));
  }
  if (rule.k_quant != KQuant::kNone && (rule.bits || rule.group_size || rule.symmetric)) {
    return BadRule(text, "scheme= sets bits, group size and symmetry; leave the others out");
  }
  return rule;
}

absl::StatusOr<std::vector<EffectiveScheme>> ResolveSchemes(const JobSpec& spec,
                                                            const std::vector<TableTensor>& table) {
  std::vector<SchemeRule> rules;
  for (const std::string& text : spec.rule) {
    PTQ_ASSIGN_OR_RETURN(SchemeRule rule, ParseSchemeRule(text));
    rules.push_back(std::move(rule));
  }
  PTQ_ASSIGN_OR_RETURN(const std::vector<SchemeRule> of_preset, RulesOfPreset(spec, table));
  rules.insert(rules.end(), of_preset.begin(), of_preset.end());
  RuleMatcher matcher(rules);
  std::vector<bool> used(rules.size(), false);
  std::vector<EffectiveScheme> layers;
  std::string example;
  bool any_scheme = false;
  const bool tied = std::none_of(table.begin(), table.end(), [](const TableTensor& tensor) {
    return tensor.part == TensorPart::kHead;
  });
  int64_t block_count = 0;
  for (const TableTensor& tensor : table) block_count = std::max(block_count, tensor.block + 1);
  for (const TableTensor& tensor : table) {
    const std::optional<ModulePlace> place = PlaceOf(tensor, tied);
    if (!place) continue;
    if (*place != ModulePlace::kBlock) {
      const SchemeRule* rule = nullptr;
      for (const int match : matcher.Match(tensor.module)) {
        const auto index = static_cast<size_t>(match);
        if (index >= spec.rule.size() || !Names(rules[index], tensor.module)) continue;
        used[index] = true;
        if (rule == nullptr) rule = &rules[index];
      }
      if (rule == nullptr || rule->skip) continue;
      EffectiveScheme& layer = layers.emplace_back();
      layer.module = tensor.module;
      layer.block = BlockOf(tensor, block_count);
      layer.out_features = tensor.shape[0];
      layer.in_features = tensor.shape[1];
      layer.place = *place;
      layer.scheme = Apply(*rule, spec.DefaultScheme());
      any_scheme = true;
      continue;
    }
    if (example.empty()) example = tensor.module;
    EffectiveScheme& layer = layers.emplace_back();
    layer.module = tensor.module;
    layer.block = tensor.block;
    layer.out_features = tensor.shape[0];
    layer.in_features = tensor.shape[1];
    layer.transposed = tensor.transposed;
    layer.scheme = spec.DefaultScheme();
    const std::vector<int> matches = matcher.Match(tensor.module);
    for (const int match : matches) used[static_cast<size_t>(match)] = true;
    if (!matches.empty()) {
      const SchemeRule& rule = rules[static_cast<size_t>(matches.front())];
      layer.scheme =
          rule.skip ? std::nullopt : std::make_optional(Apply(rule, spec.DefaultScheme()));
    }
    const bool of_preset_alone =
        !spec.preset.empty() &&
        (matches.empty() || static_cast<size_t>(matches.front()) >= spec.rule.size());
    if (of_preset_alone && layer.scheme && layer.scheme->k_quant != KQuant::kNone &&
        layer.in_features % kSuperBlock != 0) {
      layer.scheme = WithoutSuperBlocks(layer.scheme->k_quant, layer.in_features);
    }
    any_scheme = any_scheme || layer.scheme.has_value();
  }
  for (size_t i = 0; i < rules.size(); ++i) {
    if (used[i]) continue;
    if (i >= spec.rule.size()) {
      // Of a mix of K-quants some rules are for models whose q, k and v are one layer.
      if (spec.scheme != KQuant::kNone) continue;
      return absl::InvalidArgumentError(absl::StrFormat(
          "preset: %s has more bits for the last layers of MLPs, and this model has none of their "
          "names; choose a preset of one width, and rules",
          spec.preset));
    }
    if (const std::string head = tied ? MissingHead(rules[i]) : ""; !head.empty()) {
      // Nothing to leave alone.
      if (rules[i].skip) continue;
      return BadRule(spec.rule[i],
                     head +
                         " is the embedding in this model (tie_word_embeddings): leave the rule "
                         "out, or name the embedding, which gguf and dequantized can hold");
    }
    return BadRule(spec.rule[i],
                   "matches no linear layer of the model; a pattern must match a whole name such "
                   "as " +
                       Quote(example) + ", or name the embedding or head");
  }
  if (!any_scheme) {
    return absl::InvalidArgumentError(
        "rule: the rules skip every layer, nothing is left to quantize");
  }
  PTQ_RETURN_IF_ERROR(CheckSuperBlocks(layers));
  PTQ_RETURN_IF_ERROR(CheckVocabularies(layers));
  PTQ_RETURN_IF_ERROR(CheckGroupSizes(layers));
  PTQ_RETURN_IF_ERROR(CheckFormats(spec, layers));
  return layers;
}

absl::Status CheckLoadersTake(const JobSpec& spec, const std::vector<EffectiveScheme>& layers,
                              std::vector<std::string>* warnings) {
  std::vector<PlannedLayer> planned;
  planned.reserve(layers.size());
  for (const EffectiveScheme& layer : layers) {
    planned.push_back({layer.module, layer.out_features, layer.in_features, layer.scheme});
  }
  return CheckPlannedLayers(planned, spec.format, spec.allow_split_fused_sets, warnings);
}

}  // namespace ptq
