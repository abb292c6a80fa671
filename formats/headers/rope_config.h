// The rope keys of a config.json.
#ifndef PTQ_FORMATS_HEADERS_ROPE_CONFIG_H_
#define PTQ_FORMATS_HEADERS_ROPE_CONFIG_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/json_fwd.h"
#include "formats/headers/model_config.h"

namespace ptq {

// Where a family's keys and its defaults for absent ones differ.
struct RopeKeys {
  const char* theta = "rope_theta";
  double default_theta = 10000.0;
  // The family rotates a part of each head if this says so; nullptr: always the whole.
  const char* partial_rotary_factor = nullptr;
  double default_partial_rotary_factor = 1.0;
  // Of an absent original_max_position_embeddings beside the rope parameters; 0: none.
  int64_t default_original_length = 0;
  // Only these scalings, beside the default; empty: all.
  std::vector<RopeConfig::Type> scalings = {};
  // Old checkpoints of the family mean longrope by these.
  std::vector<const char*> names_of_longrope = {};
};

// From rope_scaling (transformers 4) or rope_parameters (5); `config` has its sizes.
absl::StatusOr<RopeConfig> ReadRope(const Json& json, const RopeKeys& keys,
                                    const ModelConfig& config);
// The same from one object of such parameters, `name` being its key.
absl::StatusOr<RopeConfig> ReadRopeParameters(const Json& json, const Json& parameters,
                                              const char* name, const RopeKeys& keys,
                                              const ModelConfig& config);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_ROPE_CONFIG_H_
