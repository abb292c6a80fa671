// Schemes by name: those of auto-round and llm-compressor, mixes of widths like llama.cpp's, and
// its mixes of K-quants.
#ifndef PTQ_WORKER_SPEC_PRESETS_H_
#define PTQ_WORKER_SPEC_PRESETS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/quantization_scheme.h"

namespace ptq {

struct Preset {
  const char* name;  // "W4A16": bits of weights and, since they are left alone, of activations
  const char* description;  // one line
  QuantizationScheme scheme;
  // Bits of what writes to the residual stream in the MLPs of some blocks; 0: those of the scheme.
  int wider_bits = 0;
};

// In the order in which they are listed.
const std::vector<Preset>& Presets();
// "W8A16|W4A16|...": for flags.
std::string PresetNames(const char* separator);

// In any case of letters, as auto-round takes them. kInvalidArgument listing the names.
absl::StatusOr<Preset> FindPreset(const std::string& name);

// The rules of a preset for a model of so many blocks, as --rule has them: for MLPs' last layers
// (down_proj and its like) in the first and the last eighth of the blocks, and in every third
// between, where llama.cpp's Q4_K_M uses more bits too (use_more_bits in src/llama-quant.cpp).
// Layers that loaders fuse with others keep the scheme, and so do experts. Empty for a preset of
// one width. K-quants: KQuantMixRules.
std::vector<std::string> PresetRules(const Preset& preset, int64_t block_count);

}  // namespace ptq

#endif  // PTQ_WORKER_SPEC_PRESETS_H_
