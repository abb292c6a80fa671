// A model's config as GGUF metadata: the "general.*" keys and those of its architecture.
#ifndef PTQ_FORMATS_GGUF_METADATA_H_
#define PTQ_FORMATS_GGUF_METADATA_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/gguf_file.h"
#include "formats/gguf_names.h"
#include "formats/headers/model_config.h"

namespace ptq {

// `type` is that of most weights. kFailedPrecondition naming the key of config.json for what
// llama.cpp computes in another way and has no key for: a file with it would load and be wrong.
absl::StatusOr<GgufMetadata> GgufModelMetadata(const GgufFamily& family, const ModelConfig& config,
                                               GgufType type);

// Tensors that say by what each rotary frequency is divided.
inline constexpr const char* kGgufRopeTensors[] = {"rope_freqs.weight", "rope_factors_long.weight",
                                                   "rope_factors_short.weight"};
// Those of a model, name and values: Llama 3's scaling has the first, longrope the others.
std::vector<std::pair<std::string, std::vector<float>>> GgufRopeFactors(const ModelConfig& config);

}  // namespace ptq

#endif  // PTQ_FORMATS_GGUF_METADATA_H_
