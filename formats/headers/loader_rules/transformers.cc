// transformers 5 (5.23): quantizers/, utils/quantization_config.py, modeling_utils.py.
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

// Optimum converts every linear layer of the blocks that neither `dynamic` nor
// modules_in_block_to_quantize exempts; AWQ's replace_with_awq_linear every one that
// modules_to_not_convert does not name.
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
    if (!folder.quantization.contains("modules_in_block_to_quantize")) {
      CheckUnlisted(folder, "dynamic", findings);
    }
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
