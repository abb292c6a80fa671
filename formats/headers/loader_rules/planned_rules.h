// What can be said of a plan before any weight is read: whether some loader can load what the rules
// of a job make of the model.
#ifndef PTQ_FORMATS_HEADERS_LOADER_RULES_PLANNED_RULES_H_
#define PTQ_FORMATS_HEADERS_LOADER_RULES_PLANNED_RULES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/quantization_scheme.h"

namespace ptq {

// A linear layer of the model's blocks; no scheme: it keeps its dtype.
struct PlannedLayer {
  std::string module;
  int64_t out_features = 0;
  int64_t in_features = 0;
  std::optional<QuantizationScheme> scheme;
};

// `formats` are values of --format. kFailedPrecondition, beginning with "rule: ", if
// - members of a fused set (q, k and v; gate and up; experts) have different schemes, unless
//   `allow_split_fused_sets` or all formats are for loaders that fuse nothing (gguf, dequantized);
// - a format's widths, groups or shapes are such that no loader of that format takes them.
// What only some loaders don't take is a sentence in `warnings`.
absl::Status CheckPlannedLayers(const std::vector<PlannedLayer>& layers,
                                const std::vector<std::string>& formats,
                                bool allow_split_fused_sets, std::vector<std::string>* warnings);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_LOADER_RULES_PLANNED_RULES_H_
