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

// By what each rotary frequency is divided, where a tensor says it: Llama 3's scaling
// ("rope_freqs.weight"), longrope ("rope_factors_long.weight" and "_short"). Name and values.
inline constexpr const char* kGgufRopeTensors[] = {"rope_freqs.weight", "rope_factors_long.weight",
                                                   "rope_factors_short.weight"};
std::vector<std::pair<std::string, std::vector<float>>> GgufRopeFactors(const ModelConfig& config);

}  // namespace ptq

#endif  // PTQ_FORMATS_GGUF_METADATA_H_
