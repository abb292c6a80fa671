// Rules that vLLM and SGLang, whose code has one origin, share.
#ifndef PTQ_FORMATS_HEADERS_LOADER_RULES_ENGINE_RULES_H_
#define PTQ_FORMATS_HEADERS_LOADER_RULES_ENGINE_RULES_H_

#include <string>
#include <vector>

#include "formats/headers/loader_rules/findings.h"
#include "formats/headers/loader_rules/loaded_folder.h"

namespace ptq {

// `engine` names it in messages.

// config.json's architectures, tokenizer, tensors that the model lacks, a tied head, the dtype of
// scales.
void CheckEngineFolder(const LoadedFolder& folder, const char* engine, Findings* findings);

// QuantizationConfig.get_from_keys raises for each that quantization_config lacks.
void RequireKeys(const LoadedFolder& folder, const std::vector<std::string>& keys,
                 const char* engine, Findings* findings);

// `dynamic` of GPTQ is matched against the engine's own module names, among which are qkv_proj and
// gate_up_proj (get_dynamic_override in vllm/.../gptq_utils.py): a rule that names only the parts
// has no effect on them. `infers_plain`: the engine sees by itself which layers are not quantized.
void CheckFusedDynamic(const LoadedFolder& folder, const char* engine, bool infers_plain,
                       Findings* findings);

// auto_round:auto_gptq and auto_round:auto_awq are known to both.
void CheckAutoRoundPacking(const LoadedFolder& folder, const char* engine, Findings* findings);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_LOADER_RULES_ENGINE_RULES_H_
