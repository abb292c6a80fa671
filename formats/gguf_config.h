// config.json of a model out of its GGUF metadata: the way back of gguf_metadata.h.
#ifndef PTQ_FORMATS_GGUF_CONFIG_H_
#define PTQ_FORMATS_GGUF_CONFIG_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/json.h"
#include "formats/gguf_file.h"
#include "formats/headers/model_config.h"

namespace ptq {

// The value of a key, and that of a text; nullptr and "" where it is absent or of another kind.
const GgufValue* FindGgufValue(const GgufFile& file, const std::string& key);
std::string GgufText(const GgufFile& file, const std::string& key);

// config.json as transformers would have it. llama.cpp's "llama" becomes Llama, or what
// general.name says (Mistral), which computes the same. kUnimplemented for an architecture whose
// keys don't determine it (those of llama, mistral, qwen2, qwen3, gemma2 and gemma3 do),
// kFailedPrecondition naming the key for a value that config.json can't say; either asks for the
// original config.json.
absl::StatusOr<Json> ConfigOfGguf(const GgufFile& file);

// Whether the file is of a model with this config.json: kFailedPrecondition naming the first key
// that says otherwise.
absl::Status CheckGgufConfig(const GgufFile& file, const ModelConfig& config);

}  // namespace ptq

#endif  // PTQ_FORMATS_GGUF_CONFIG_H_
