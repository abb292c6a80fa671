// What each loader asks of a quantized layer's width, groups and shape: the rules that can be
// judged before there are files.
#ifndef PTQ_FORMATS_HEADERS_LOADER_RULES_LAYER_RULES_H_
#define PTQ_FORMATS_HEADERS_LOADER_RULES_LAYER_RULES_H_

#include <string>
#include <vector>

#include "formats/headers/loader_rules/findings.h"
#include "formats/headers/loader_rules/loaded_folder.h"
#include "formats/headers/loader_rules/loader_rules.h"

namespace ptq {

// `method` is the quant_method that the layers are written under. llama.cpp has no rules here: it
// reads GGUF.
void CheckLayers(Loader loader, const std::string& method,
                 const std::vector<QuantizedLayer>& layers, Findings* findings);

// What vLLM and SGLang fuse: members of a set have one scheme, or none has. `plain` are the linear
// modules of the blocks that keep their dtype.
void CheckFusedSets(const std::vector<QuantizedLayer>& layers,
                    const std::vector<std::string>& plain, Findings* findings);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_LOADER_RULES_LAYER_RULES_H_
