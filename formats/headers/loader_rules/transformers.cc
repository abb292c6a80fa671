// transformers 5 (5.23): quantizers/, utils/quantization_config.py, modeling_utils.py.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "formats/headers/loader_rules/fused_sets.h"
#include "formats/headers/loader_rules/layer_rules.h"
#include "formats/headers/loader_rules/loaders.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

constexpr char kGptqmodel[] = "gptqmodel >= 1.4.3 and optimum >= 1.24";

// GPTQConfig.post_init.
void CheckGptqConfig(const LoadedFolder& folder, Findings* findings) {
  const Json damp = folder.quantization.value("damp_percent", Json(0.1));
  if (!damp.is_number() || !(damp.get<double>() > 0) || !(damp.get<double>() < 1)) {
    findings->Refuse("config.json", "quantization_config: damp_percent must lie between 0 and 1");
  }
  // GPTQModel's loader reads the order of inputs from it, act-order or not (formats.md §6.1).
  for (const QuantizedLayer& layer : folder.layers) {
    if (folder.index.Find(layer.module + ".g_idx") != nullptr) continue;
    findings->Refuse(layer.module,
                     "tensor g_idx is missing, which GPTQModel asks for; write gptq again, or "
                     "auto-round, whose loader does without");
  }
}

// Optimum (2.3, gptq/quantizer.py) puts a layer of the config's scheme in the place of every linear
// layer of the blocks whose name ends in one of modules_in_block_to_quantize, or of all where there
// is no such key. It does not look at `dynamic`.
void CheckOptimum(const LoadedFolder& folder, Findings* findings) {
  const Json named = folder.quantization.value("modules_in_block_to_quantize", Json(nullptr));
  std::vector<std::string> endings;
  for (const Json& list : named.is_array() ? named : Json::array()) {
    for (const Json& name : list.is_array() ? list : Json::array({list})) {
      if (name.is_string()) endings.push_back(name.get<std::string>());
    }
  }
  const auto is_replaced = [&](const std::string& module) {
    return named.is_null() ||
           std::any_of(endings.begin(), endings.end(),
                       [&](const std::string& ending) { return absl::EndsWith(module, ending); });
  };
  for (const std::string& module : folder.plain_linears) {
    if (!is_replaced(module)) continue;
    findings->Refuse(module,
                     "is not quantized, and transformers makes a quantized layer of it all the "
                     "same, whatever \"dynamic\" says; name the quantized layers in "
                     "\"modules_in_block_to_quantize\"");
  }
  if (folder.layers.empty()) return;
  // Both are there, and integers: layers have been read by them.
  const auto bits = folder.quantization.at("bits").get<int64_t>();
  const auto group = folder.quantization.at("group_size").get<int64_t>();
  const auto group_of = [](int64_t size, int64_t columns) { return size > 0 ? size : columns; };
  for (const QuantizedLayer& layer : folder.layers) {
    if (!is_replaced(layer.module)) {
      findings->Refuse(layer.module, "is not named in \"modules_in_block_to_quantize\"");
    } else if (layer.bits != bits || group_of(layer.group_size, layer.in_features) !=
                                         group_of(group, layer.in_features)) {
      findings->Refuse(layer.module,
                       "has other bits or groups than quantization_config's first ones, which "
                       "transformers takes for all layers, whatever \"dynamic\" says; open the "
                       "folder by GPTQModel.load, or write auto-round or compressed-tensors");
    }
  }
}

// AWQ's replace_with_awq_linear converts every linear layer that modules_to_not_convert does not
// name.
void CheckUnlisted(const LoadedFolder& folder, const char* key, Findings* findings) {
  for (const std::string& module : folder.unlisted_plain) {
    findings->Refuse(module,
                     absl::StrFormat("is not quantized, and quantization_config does not say so; "
                                     "exempt it by \"%s\"",
                                     key));
  }
}

// A layer's routed experts are one tensor in transformers 5. compressed-tensors stacks packed ones
// into it and auto-round puts linear layers in its place; the other quantizers leave the experts'
// tensors out, and the model runs with what its memory held.
void CheckExperts(const LoadedFolder& folder, Findings* findings) {
  for (const QuantizedLayer& layer : folder.layers) {
    const auto set = FusedSetOf(layer.module);
    if (!set || set->joins_rows) continue;
    // Mixtral's names are w1, w2, w3.
    const bool renamed = !absl::EndsWith(layer.module, "_proj");
    if (folder.method == "torchao") {
      findings->Refuse(layer.module,
                       "transformers leaves routed experts out of torchao files, without an "
                       "error; write compressed-tensors");
    } else if (folder.method == "gptq" || folder.method == "awq") {
      findings->Refuse(
          layer.module,
          absl::StrFormat("transformers leaves routed experts out of %s files, without an error; "
                          "%s",
                          folder.method,
                          renamed ? "write compressed-tensors"
                                  : "open them by GPTQModel.load, or write compressed-tensors"));
    } else if (folder.method == "auto-round" && renamed) {
      findings->Refuse(layer.module,
                       "auto-round looks for experts named gate_proj, up_proj and down_proj; write "
                       "compressed-tensors");
    }
  }
}

}  // namespace

void CheckTransformers(const LoadedFolder& folder, Findings* findings, std::string* needs) {
  // AutoModelForCausalLM chooses the class by it.
  if (!folder.config.contains("model_type")) {
    findings->Refuse("config.json",
                     "has no model_type, by which AutoModel chooses the class; take it from the "
                     "original model");
  }
  if (folder.method == "torchao") *needs = "torchao >= 0.15";
  if (folder.method == "compressed-tensors") *needs = "compressed-tensors >= 0.15";
  if (folder.method == "auto-round") {
    *needs = "auto-round >= 0.5";
    for (const QuantizedLayer& layer : folder.layers) {
      if (layer.layout == Layout::kAwq) *needs = "auto-round >= 0.5 and gptqmodel >= 5.6";
    }
  }
  if (folder.method == "gptq") {
    *needs = kGptqmodel;
    CheckGptqConfig(folder, findings);
    CheckOptimum(folder, findings);
  }
  if (folder.method == "awq") {
    *needs = "gptqmodel and accelerate";
    CheckUnlisted(folder, "modules_to_not_convert", findings);
  }
  CheckExperts(folder, findings);
  CheckLayers(Loader::kTransformers, folder.method, folder.layers, findings);
  // from_pretrained reports them as unexpected and goes on.
  for (const std::string& name : folder.stray_tensors) {
    findings->Remark(Quote(name), "the model has no such tensor, and transformers leaves it out");
  }
  if (!folder.has_tokenizer) {
    findings->Remark("",
                     "The folder has no tokenizer: AutoTokenizer needs tokenizer.json or its "
                     "like, from the original model.");
  }
}

void CheckGgufForTransformers(const GgufHeader& header, Findings* findings, std::string* needs) {
  *needs = "gguf >= 0.10";
  CheckGgufForLlamaCpp(header, findings);
  // modeling_gguf_pytorch_utils.py: load_gguf_checkpoint dequantizes every tensor.
  findings->Remark("",
                   "transformers reads the file by gguf_file=\"...\" and dequantizes all weights "
                   "to the full size, for the architectures that it knows.");
}

}  // namespace ptq
