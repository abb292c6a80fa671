// The rules of each loader over a whole folder, beside those of layers (layer_rules.h).
#ifndef PTQ_FORMATS_HEADERS_LOADER_RULES_LOADERS_H_
#define PTQ_FORMATS_HEADERS_LOADER_RULES_LOADERS_H_

#include <string>

#include "formats/headers/loader_rules/findings.h"
#include "formats/headers/loader_rules/gguf_header.h"
#include "formats/headers/loader_rules/loaded_folder.h"

namespace ptq {

// A folder whose method and layers are known and that has no faults of its own. `needs` gets the
// packages that the loader asks for beside itself.
void CheckTransformers(const LoadedFolder& folder, Findings* findings, std::string* needs);
void CheckVllm(const LoadedFolder& folder, Findings* findings, std::string* needs);
void CheckSglang(const LoadedFolder& folder, Findings* findings, std::string* needs);
void CheckLlamaCpp(const LoadedFolder& folder, Findings* findings);

// The same of a GGUF file that could be read. llama.cpp's rules are about the file, so the others
// ask for them too.
void CheckGgufForLlamaCpp(const GgufHeader& header, Findings* findings);
void CheckGgufForTransformers(const GgufHeader& header, Findings* findings, std::string* needs);
void CheckGgufForVllm(const GgufHeader& header, Findings* findings, std::string* needs);
void CheckGgufForSglang(const GgufHeader& header, Findings* findings, std::string* needs);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_LOADER_RULES_LOADERS_H_
