// vLLM: model_executor/layers/quantization/{auto_gptq,auto_awq,torchao}.py, .../compressed_tensors,
// .../inc (auto-round), .../utils/{gptq_utils,marlin_utils}.py, model_loader/weight_utils.py.
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "formats/headers/loader_rules/engine_rules.h"
#include "formats/headers/loader_rules/fused_sets.h"
#include "formats/headers/loader_rules/layer_rules.h"
#include "formats/headers/loader_rules/loaders.h"

namespace ptq {
namespace {

// TorchAOConfig.from_config: one config for all layers, by which a dummy weight is made; only
// modules_to_not_convert stay as they are.
void CheckTorchao(const LoadedFolder& folder, Findings* findings) {
  std::set<std::string> skipped;
  const Json list = folder.quantization.value("modules_to_not_convert", Json(nullptr));
  if (list.is_array()) {
    for (const Json& module : list) {
      if (module.is_string()) skipped.insert(module.get<std::string>());
    }
  }
  for (const std::string& module : folder.plain_linears) {
    if (skipped.count(module) > 0) continue;
    findings->Refuse(module,
                     "is not quantized, and vLLM would quantize it by the config; name it in "
                     "\"modules_to_not_convert\"");
  }
  for (const QuantizedLayer& layer : folder.layers) {
    if (layer.group_size == folder.layers.front().group_size &&
        layer.layout == folder.layers.front().layout) {
      continue;
    }
    findings->Refuse(layer.module,
                     "its scheme is not the config's \"default\", and vLLM knows no other; write "
                     "compressed-tensors for mixed schemes");
  }
}

}  // namespace

void CheckVllm(const LoadedFolder& folder, Findings* findings, std::string* needs) {
  CheckEngineFolder(folder, "vLLM", findings);
  if (folder.method == "torchao") {
    *needs = "torchao >= 0.15";
    CheckTorchao(folder, findings);
  }
  if (folder.method == "gptq") {
    RequireKeys(folder, {"bits", "group_size", "desc_act", "sym"}, "vLLM", findings);
    // maybe_update_config looks which tensors are codes.
    const bool infers = !folder.quantization.contains("modules_in_block_to_quantize");
    CheckFusedDynamic(folder, "vLLM", infers, findings);
  }
  if (folder.method == "awq") RequireKeys(folder, {"zero_point"}, "vLLM", findings);
  if (folder.method == "auto-round") {
    RequireKeys(folder, {"bits", "group_size", "sym"}, "vLLM", findings);
    // INCConfig.SUPPORTED_FORMATS.
    CheckAutoRoundPacking(folder, "vLLM", findings);
  }
  CheckLayers(Loader::kVllm, folder.method, folder.layers, findings);
  CheckFusedSets(folder.layers, folder.plain_linears, findings);
}

void CheckGgufForVllm(const GgufHeader& header, Findings* findings, std::string* needs) {
  *needs = "vLLM's GGUF plugin from 0.24 on";
  CheckGgufForLlamaCpp(header, findings);
  findings->Remark("",
                   "vLLM reads GGUF experimentally and asks for the original model's tokenizer "
                   "by --tokenizer; compressed-tensors is its own format.");
}

}  // namespace ptq
