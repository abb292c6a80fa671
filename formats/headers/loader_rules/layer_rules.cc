#include "formats/headers/loader_rules/layer_rules.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "formats/headers/loader_rules/fused_sets.h"

namespace ptq {
namespace {

// Marlin's tiles: GPTQ_MARLIN_MIN_THREAD_N and _K (vllm/.../quantization/utils/marlin_utils.py,
// sglang/.../quantization/marlin_utils.py).
constexpr int64_t kMarlinRows = 64;
constexpr int64_t kMarlinColumns = 128;

// MARLIN_SUPPORTED_GROUP_SIZES of both.
bool IsMarlinGroup(int64_t group_size) {
  return group_size == -1 || group_size == 32 || group_size == 64 || group_size == 128;
}

// Layers as an engine multiplies by them: rows of fused members together.
std::vector<QuantizedLayer> Fuse(const std::vector<QuantizedLayer>& layers) {
  std::vector<QuantizedLayer> fused;
  std::map<std::string, size_t> places;
  for (const QuantizedLayer& layer : layers) {
    const auto set = FusedSetOf(layer.module);
    if (!set || !set->joins_rows) {
      fused.push_back(layer);
      continue;
    }
    const auto [place, inserted] = places.try_emplace(set->module, fused.size());
    if (inserted) {
      fused.push_back(layer);
    } else {
      fused[place->second].out_features += layer.out_features;
    }
  }
  return fused;
}

// Words of 32 bits that hold whole codes: vLLM's and SGLang's parameters are sized by
// 32 / bits, and cut members of a fused layer at such words.
bool FillsWords(int64_t count, int bits) { return (count * bits) % 32 == 0; }

void CheckPacking(const QuantizedLayer& layer, Findings* findings) {
  const bool rows_packed = layer.layout != Layout::kCompressedTensors || !layer.symmetric;
  if (!FillsWords(layer.in_features, layer.bits) && layer.layout != Layout::kAwq) {
    findings->Refuse(layer.module,
                     absl::StrFormat("in_features %d of %d bits do not fill words of 32 bits; "
                                     "leave the layer unquantized by a rule with skip",
                                     layer.in_features, layer.bits));
  }
  if (rows_packed && !FillsWords(layer.out_features, layer.bits)) {
    findings->Refuse(layer.module,
                     absl::StrFormat("out_features %d of %d bits do not fill words of 32 bits; "
                                     "leave the layer unquantized by a rule with skip",
                                     layer.out_features, layer.bits));
  }
}

bool FitsMarlinTiles(const QuantizedLayer& layer) {
  return layer.out_features % kMarlinRows == 0 && layer.in_features % kMarlinColumns == 0;
}

std::string TileText(const QuantizedLayer& layer, const char* engine, const char* advice) {
  return absl::StrFormat(
      "out_features %d and in_features %d (fused layers together) are not multiples of %d and %d, "
      "which the Marlin kernels of %s ask for; %s",
      layer.out_features, layer.in_features, kMarlinRows, kMarlinColumns, engine, advice);
}

// --- vLLM ---------------------------------------------------------------------------------------

// CompressedTensorsWNA16 (compressed_tensors/schemes/compressed_tensors_wNa16.py): types by bits
// and symmetry; then a kernel of kernels/linear/mixed_precision, of which Marlin serves most GPUs.
// get_quant_method knows ParallelLMHead since the releases that quantize embeddings.
void CheckVllmCompressedTensors(const QuantizedLayer& layer, Findings* findings) {
  if (IsOutsideOfBlocks(layer.module)) {
    findings->Remark(layer.module,
                     "releases of vLLM before 0.29 know no quantized head in compressed-tensors, "
                     "and fail on its tensors; gptq's head loads in older ones too");
  }
  if (layer.bits != 4 && layer.bits != 8) {
    findings->Refuse(layer.module,
                     absl::StrFormat("vLLM reads pack-quantized weights of 4 or 8 bits, and these "
                                     "have %d; quantize with 4 or 8 bits",
                                     layer.bits));
    return;
  }
  if (!IsMarlinGroup(layer.group_size)) {
    findings->Refuse(layer.module,
                     absl::StrFormat("vLLM's kernels take group_size -1 (channel), 32, 64 or 128, "
                                     "and it is %d; choose one of these",
                                     layer.group_size));
  }
  if (layer.bits == 8 && !layer.symmetric) {
    findings->Remark(layer.module,
                     "8 bits with zero points have no Marlin kernel: vLLM needs a GPU and shapes "
                     "that Machete or Conch serve; symmetric 8 bits run everywhere");
  }
}

// AutoGPTQConfig.TYPE_MAP and verify_marlin_supported (auto_gptq.py).
void CheckVllmGptq(const QuantizedLayer& layer, Findings* findings) {
  if (!layer.symmetric || (layer.bits != 4 && layer.bits != 8)) {
    findings->Refuse(
        layer.module,
        absl::StrFormat("vLLM takes GPTQ weights of 4 or 8 bits, symmetric, and these "
                        "have %d, %s; quantize so, or write compressed-tensors (or awq "
                        "for asymmetric 4 bits)",
                        layer.bits, layer.symmetric ? "symmetric" : "asymmetric"));
    return;
  }
  if (!IsMarlinGroup(layer.group_size)) {
    findings->Refuse(layer.module,
                     absl::StrFormat("vLLM's Marlin kernels take group_size -1 (channel), 32, 64 "
                                     "or 128, and it is %d; choose one of these",
                                     layer.group_size));
  }
}

// AutoAWQConfig (auto_awq.py): uint4 alone; what Marlin does not take falls back to AWQ's own
// kernels, which work on groups of multiples of 32.
void CheckAwq(const QuantizedLayer& layer, const char* engine, Findings* findings) {
  if (layer.bits != 4) {
    findings->Refuse(layer.module,
                     absl::StrFormat("%s reads AWQ weights of 4 bits, and these have %d; quantize "
                                     "with 4 bits, or write compressed-tensors for 8",
                                     engine, layer.bits));
    return;
  }
  if (IsMarlinGroup(layer.group_size)) return;
  if (layer.group_size > 0 && layer.group_size % 32 == 0) {
    findings->Remark(layer.module,
                     absl::StrFormat("group_size %d has no Marlin kernel: %s falls back to AWQ's "
                                     "own, which are slower and compute in float16",
                                     layer.group_size, engine));
    return;
  }
  findings->Refuse(layer.module,
                   absl::StrFormat("%s's AWQ kernels take group_size -1 (channel) or a multiple of "
                                   "32, and it is %d; choose 32, 64 or 128",
                                   engine, layer.group_size));
}

// vLLM makes a dummy weight by the config and copies the file's into it (quantization/torchao.py).
// IntxUnpackedToInt8Tensor's copy_ compares block_size, a tuple on one side and a list on the
// other: measured with torchao 0.18, it raises for every Intx weight and never for an Int8Tensor.
void CheckVllmTorchao(const QuantizedLayer& layer, Findings* findings) {
  if (IsOutsideOfBlocks(layer.module)) {
    // TorchAOConfig.get_quant_method: LinearBase alone.
    findings->Refuse(layer.module,
                     "vLLM reads torchao weights of the blocks' linear layers alone; leave it "
                     "unquantized by a rule with skip");
    return;
  }
  if (layer.layout == Layout::kTorchaoInt8) return;
  findings->Refuse(layer.module,
                   "vLLM can't copy torchao's IntxUnpackedToInt8Tensor from safetensors (its copy_ "
                   "compares a list with a tuple and raises); write compressed-tensors for vLLM");
}

void CheckVllmLayer(const QuantizedLayer& layer, Findings* findings) {
  switch (layer.layout) {
    case Layout::kTorchaoIntx:
    case Layout::kTorchaoInt8:
      return CheckVllmTorchao(layer, findings);
    case Layout::kCompressedTensors:
      CheckVllmCompressedTensors(layer, findings);
      return CheckPacking(layer, findings);
    case Layout::kGptq:
    case Layout::kGptqTrueZeros:
      CheckVllmGptq(layer, findings);
      return CheckPacking(layer, findings);
    case Layout::kAwq:
      CheckAwq(layer, "vLLM", findings);
      return CheckPacking(layer, findings);
  }
}

// --- SGLang -------------------------------------------------------------------------------------

// compressed_tensors/schemes/compressed_tensors_wNa16.py: always Marlin. get_quant_method knows
// LinearBase alone, while GPTQ's and auto-round's know ParallelLMHead.
void CheckSglangCompressedTensors(const QuantizedLayer& layer, Findings* findings) {
  if (IsOutsideOfBlocks(layer.module)) {
    findings->Refuse(layer.module,
                     "SGLang knows no quantized head in compressed-tensors; leave it unquantized "
                     "by a rule with skip, or write gptq");
    return;
  }
  if (layer.bits != 4 && layer.bits != 8) {
    findings->Refuse(
        layer.module,
        absl::StrFormat("SGLang reads pack-quantized weights of 4 or 8 bits, and these "
                        "have %d; quantize with 4 or 8 bits",
                        layer.bits));
    return;
  }
  if (!IsMarlinGroup(layer.group_size)) {
    findings->Refuse(layer.module,
                     absl::StrFormat("SGLang's Marlin kernels take group_size -1 (channel), 32, 64 "
                                     "or 128, and it is %d; choose one of these",
                                     layer.group_size));
  }
  if (layer.symmetric) return;
  if (layer.bits == 8) {
    findings->Refuse(layer.module,
                     "SGLang has no kernel for 8 bits with zero points; quantize symmetric");
  } else {
    findings->Remark(layer.module,
                     "older releases of SGLang read symmetric pack-quantized weights only; use a "
                     "release that knows zero points there, or write awq");
  }
}

// GPTQMarlinConfig where it can, else GPTQConfig with exllama's kernels (gptq/gptq.py).
void CheckSglangGptq(const QuantizedLayer& layer, Findings* findings) {
  if (layer.bits != 2 && layer.bits != 3 && layer.bits != 4 && layer.bits != 8) {
    findings->Refuse(layer.module,
                     absl::StrFormat("SGLang reads GPTQ weights of 2, 3, 4 or 8 bits, and these "
                                     "have %d; quantize with one of these",
                                     layer.bits));
    return;
  }
  const bool marlin =
      layer.symmetric && (layer.bits == 4 || layer.bits == 8) && IsMarlinGroup(layer.group_size);
  if (marlin) return;
  findings->Remark(
      layer.module,
      absl::StrFormat("%d bits, %s, group_size %d have no Marlin kernel: SGLang takes "
                      "exllama's, which are slower and compute in float16 only",
                      layer.bits, layer.symmetric ? "symmetric" : "asymmetric", layer.group_size));
}

void CheckSglangLayer(const QuantizedLayer& layer, Findings* findings) {
  switch (layer.layout) {
    case Layout::kTorchaoIntx:
    case Layout::kTorchaoInt8:
      return;  // the method is refused as such
    case Layout::kCompressedTensors:
      CheckSglangCompressedTensors(layer, findings);
      return CheckPacking(layer, findings);
    case Layout::kGptq:
    case Layout::kGptqTrueZeros:
      CheckSglangGptq(layer, findings);
      return CheckPacking(layer, findings);
    case Layout::kAwq:
      CheckAwq(layer, "SGLang", findings);
      return CheckPacking(layer, findings);
  }
}

// --- transformers -------------------------------------------------------------------------------

// auto_round/inference/backend.py: auto_round:torch and torch_zp, gptqmodel:awq_torch.
void CheckAutoRoundLayer(const QuantizedLayer& layer, Findings* findings) {
  const int64_t multiple = layer.layout == Layout::kAwq ? 16 : 32;
  if (layer.in_features % multiple != 0 || layer.out_features % multiple != 0) {
    findings->Refuse(layer.module,
                     absl::StrFormat("auto-round's backends ask for out_features and in_features "
                                     "in multiples of %d, and they are %d and %d; leave the layer "
                                     "unquantized by a rule with skip",
                                     multiple, layer.out_features, layer.in_features));
  }
  if (layer.layout == Layout::kGptq && !layer.symmetric) {
    findings->Refuse(layer.module,
                     "auto-round reads asymmetric weights in its own packing or AWQ's, and this is "
                     "auto_round:auto_gptq; write awq, or quantize symmetric");
  }
  if (layer.layout == Layout::kAwq && layer.bits != 4) {
    findings->Refuse(layer.module, "AWQ's packing holds 4 bits; write auto-round's own packing");
  }
}

// GPTQConfig.post_init (utils/quantization_config.py) and GPTQModel's torch kernel.
void CheckGptqmodelLayer(const QuantizedLayer& layer, Findings* findings) {
  if (layer.bits != 2 && layer.bits != 3 && layer.bits != 4 && layer.bits != 8) {
    findings->Refuse(layer.module,
                     absl::StrFormat("transformers reads GPTQ weights of 2, 3, 4 or 8 bits, and "
                                     "these have %d; quantize with one of these, or write "
                                     "auto-round",
                                     layer.bits));
  }
  if (layer.in_features % 32 != 0 || layer.out_features % 32 != 0) {
    findings->Refuse(layer.module,
                     absl::StrFormat("GPTQModel's kernels ask for out_features and in_features in "
                                     "multiples of 32, and they are %d and %d; leave the layer "
                                     "unquantized by a rule with skip, or write compressed-tensors",
                                     layer.out_features, layer.in_features));
  }
  if (!layer.symmetric && layer.layout == Layout::kGptq) {
    findings->Remark(layer.module,
                     "GPTQModel takes asymmetric GPTQ v1 weights only from quantizers that it "
                     "knows; write awq or compressed-tensors for asymmetric weights");
  }
}

void CheckTransformersLayer(const std::string& method, const QuantizedLayer& layer,
                            Findings* findings) {
  if (method == "auto-round") return CheckAutoRoundLayer(layer, findings);
  switch (layer.layout) {
    case Layout::kTorchaoIntx:
    case Layout::kTorchaoInt8:
    case Layout::kCompressedTensors:
      return;  // any width, group and shape
    case Layout::kGptq:
    case Layout::kGptqTrueZeros:
      // optimum's convert_model looks for layers in blocks (measured with 2.3: the head is random).
      if (IsOutsideOfBlocks(layer.module)) {
        findings->Refuse(layer.module,
                         "transformers reads GPTQ layers of blocks alone, and would make up the "
                         "head at random; pass quantization_config=AutoRoundConfig(), whose loader "
                         "takes it, or leave it unquantized by a rule with skip");
      }
      return CheckGptqmodelLayer(layer, findings);
    case Layout::kAwq:
      // replace_with_awq_linear hands bits on to GPTQModel, whose AWQ kernels know 4.
      if (layer.bits != 4) {
        findings->Refuse(layer.module,
                         "GPTQModel reads AWQ weights of 4 bits; write "
                         "compressed-tensors for others");
      }
      return;
  }
}

bool SameScheme(const QuantizedLayer& a, const QuantizedLayer& b) {
  return a.bits == b.bits && a.group_size == b.group_size && a.symmetric == b.symmetric &&
         a.layout == b.layout;
}

}  // namespace

void CheckFusedSets(const std::vector<QuantizedLayer>& layers,
                    const std::vector<std::string>& plain, Findings* findings) {
  // The first layer seen of each set, or none where the first was not quantized.
  std::map<std::string, std::optional<QuantizedLayer>> first;
  std::map<std::string, bool> told;
  const auto compare = [&](const std::string& module, const QuantizedLayer* layer) {
    const auto set = FusedSetOf(module);
    if (!set) return;
    const auto [at, inserted] =
        first.try_emplace(set->module, layer ? std::make_optional(*layer) : std::nullopt);
    if (inserted) return;
    const std::optional<QuantizedLayer>& other = at->second;
    const bool same = (layer == nullptr) == !other.has_value() &&
                      (layer == nullptr || SameScheme(*layer, *other));
    if (same || std::exchange(told[set->module], true)) return;
    findings->Refuse(set->module,
                     set->members +
                         " are loaded as one layer and must have one scheme (bits, group size, "
                         "symmetry), or none of them any; give them one rule");
  };
  for (const QuantizedLayer& layer : layers) compare(layer.module, &layer);
  for (const std::string& module : plain) compare(module, nullptr);
}

void CheckLayers(Loader loader, const std::string& method,
                 const std::vector<QuantizedLayer>& layers, Findings* findings) {
  switch (loader) {
    case Loader::kTransformers:
      for (const QuantizedLayer& layer : layers) CheckTransformersLayer(method, layer, findings);
      return;
    case Loader::kVllm:
      for (const QuantizedLayer& layer : layers) CheckVllmLayer(layer, findings);
      for (const QuantizedLayer& layer : Fuse(layers)) {
        if (method == "torchao" || layer.layout == Layout::kAwq || FitsMarlinTiles(layer)) continue;
        findings->Remark(
            layer.module,
            TileText(layer, "vLLM", "older releases refuse the layer, newer ones pad it"));
      }
      return;
    case Loader::kSglang:
      for (const QuantizedLayer& layer : layers) CheckSglangLayer(layer, findings);
      for (const QuantizedLayer& layer : Fuse(layers)) {
        if (method == "torchao" || layer.layout == Layout::kAwq || FitsMarlinTiles(layer)) continue;
        findings->Refuse(layer.module, TileText(layer, "SGLang",
                                                "leave the layer unquantized by a rule with skip, "
                                                "or write awq"));
      }
      return;
    case Loader::kLlamaCpp:
      return;
  }
}

}  // namespace ptq
