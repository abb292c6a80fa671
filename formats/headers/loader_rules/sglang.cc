// SGLang: srt/layers/quantization/__init__.py (QUANTIZATION_METHODS), gptq/gptq.py, awq/awq.py,
// auto_round/auto_round.py, compressed_tensors/.
#include "formats/headers/loader_rules/engine_rules.h"
#include "formats/headers/loader_rules/layer_rules.h"
#include "formats/headers/loader_rules/loaders.h"

namespace ptq {

void CheckSglang(const LoadedFolder& folder, Findings* findings, std::string*) {
  CheckEngineFolder(folder, "SGLang", findings);
  if (folder.method == "torchao") {
    findings->Refuse("config.json",
                     "SGLang has no quant_method torchao (it quantizes by torchao only while it "
                     "loads plain weights); write compressed-tensors for SGLang");
  }
  if (folder.method == "gptq") {
    RequireKeys(folder, {"bits", "group_size", "desc_act"}, "SGLang", findings);
    CheckFusedDynamic(folder, "SGLang", /*infers_plain=*/false, findings);
    // Unlike vLLM it does not look which tensors there are.
    for (const std::string& module : folder.unlisted_plain) {
      findings->Refuse(module,
                       "is not quantized, and quantization_config does not say so; exempt it by "
                       "\"dynamic\"");
    }
  }
  if (folder.method == "awq") {
    RequireKeys(folder, {"zero_point"}, "SGLang", findings);
    for (const std::string& module : folder.unlisted_plain) {
      findings->Refuse(module,
                       "is not quantized, and quantization_config does not say so; exempt it by "
                       "\"modules_to_not_convert\"");
    }
  }
  if (folder.method == "auto-round") {
    RequireKeys(folder, {"bits", "group_size", "sym"}, "SGLang", findings);
    // AutoRoundConfig.SUPPORTED_FORMATS.
    CheckAutoRoundPacking(folder, "SGLang", findings);
  }
  CheckLayers(Loader::kSglang, folder.method, folder.layers, findings);
  CheckFusedSets(folder.layers, folder.plain_linears, findings);
}

void CheckGgufForSglang(const GgufHeader& header, Findings* findings, std::string*) {
  CheckGgufForLlamaCpp(header, findings);
  findings->Remark("",
                   "SGLang reads GGUF by --load-format gguf on CUDA, as slow as its kernels for "
                   "it are; compressed-tensors or gptq run faster.");
}

}  // namespace ptq
