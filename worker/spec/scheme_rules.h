// Ordered rules over module names: which scheme each linear layer of a model gets, or none.
#ifndef PTQ_WORKER_SPEC_SCHEME_RULES_H_
#define PTQ_WORKER_SPEC_SCHEME_RULES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/quantization_scheme.h"
#include "formats/headers/planned_module.h"
#include "formats/headers/tensor_table.h"
#include "worker/spec/job_spec.h"

namespace ptq {

// One parsed `--rule`. PATTERN is RE2, matched in full against the module's name; the text after
// the last ':' is "skip", comma-separated bits=, group_size=, symmetric= (true or false), or
// scheme= with the name of a K-quant.
struct SchemeRule {
  std::string pattern;
  bool skip = false;
  std::optional<int> bits;
  std::optional<int64_t> group_size;
  std::optional<bool> symmetric;
  KQuant k_quant = KQuant::kNone;
};

// kInvalidArgument quoting the rule.
absl::StatusOr<SchemeRule> ParseSchemeRule(const std::string& text);

struct EffectiveScheme {
  std::string module;  // "model.layers.0.mlp.down_proj"
  int64_t block = 0;   // of the embedding and the head as BlockOf has it
  int64_t out_features = 0;
  int64_t in_features = 0;
  std::optional<QuantizationScheme> scheme;  // none: left in its original dtype
  bool transposed = false;                   // TableTensor::transposed
  ModulePlace place = ModulePlace::kBlock;
};

// One entry for every linear layer inside the decoder blocks of `table`, in its order; the first
// rule that matches wins, those of the preset after all others. Where a preset alone asks for a
// K-quant and super-blocks do not divide the layer's in_features, the layer gets what llama.cpp
// falls back to. Embedding and head have an entry, with a scheme, where a rule of the spec names
// them: matches them, but would not match any name in their place (".*").
// kInvalidArgument: a rule that matches no module; a group size, or another K-quant's super-blocks,
// that do not divide in_features, listing the layers, and the rule that would leave them alone; one
// scale for a whole embedding or head; a rule for the head of a model that has none but its
// embedding. kFailedPrecondition: a layer that one of the asked-for formats can't hold, and a
// format that can.
absl::StatusOr<std::vector<EffectiveScheme>> ResolveSchemes(const JobSpec& spec,
                                                            const std::vector<TableTensor>& table);

// What loaders make of the schemes in the formats that the spec asks for. kFailedPrecondition if no
// loader takes them, or if rules split a fused set and the spec does not allow it; `warnings` gets
// sentences about what only some loaders don't take (formats/headers/loader_rules/planned_rules.h).
absl::Status CheckLoadersTake(const JobSpec& spec, const std::vector<EffectiveScheme>& layers,
                              std::vector<std::string>* warnings);

}  // namespace ptq

#endif  // PTQ_WORKER_SPEC_SCHEME_RULES_H_
