#include "formats/headers/loader_rules/planned_rules.h"

#include <algorithm>

#include "absl/strings/str_join.h"
#include "formats/headers/loader_rules/layer_rules.h"

namespace ptq {
namespace {

bool IsFused(const std::string& format) { return format != "gguf" && format != "dequantized"; }

// The layout that the format gives a layer, `all` being those of the model; nullopt for formats
// whose loaders have no rules here.
std::optional<Layout> LayoutOf(const std::string& format, const QuantizedLayer& layer,
                               const std::vector<QuantizedLayer>& all) {
  if (format == "affine") {
    const bool channel8 =
        layer.bits == 8 && layer.symmetric && layer.group_size == QuantizationScheme::kPerChannel;
    return channel8 ? Layout::kTorchaoInt8 : Layout::kTorchaoIntx;
  }
  if (format == "compressed-tensors") return Layout::kCompressedTensors;
  if (format == "gptq") return Layout::kGptq;
  if (format == "awq") return Layout::kAwq;
  if (format != "auto-round") return std::nullopt;
  // One packing for the whole model.
  const auto every = [&all](auto holds) { return std::all_of(all.begin(), all.end(), holds); };
  if (every([](const QuantizedLayer& one) { return one.symmetric; })) return Layout::kGptq;
  return every([](const QuantizedLayer& one) { return one.bits == 4; }) ? Layout::kAwq
                                                                        : Layout::kGptqTrueZeros;
}

std::string MethodOf(const std::string& format) { return format == "affine" ? "torchao" : format; }

// Of what the loader makes of layers of this format, whatever their schemes.
bool ReadsFormat(Loader loader, const std::string& format) {
  if (loader == Loader::kLlamaCpp) return false;
  // vLLM can't copy Intx weights, SGLang has no torchao: every scheme fails on them.
  return loader == Loader::kTransformers || format != "affine";
}

struct Judged {
  Loader loader;
  std::vector<std::string> problems;
};

}  // namespace

absl::Status CheckPlannedLayers(const std::vector<PlannedLayer>& layers,
                                const std::vector<std::string>& formats,
                                bool allow_split_fused_sets, std::vector<std::string>* warnings) {
  std::vector<std::string> plain;
  std::vector<QuantizedLayer> quantized;
  for (const PlannedLayer& layer : layers) {
    if (!layer.scheme) {
      plain.push_back(layer.module);
      continue;
    }
    quantized.push_back({layer.module, Layout::kCompressedTensors, layer.out_features,
                         layer.in_features, layer.scheme->bits, layer.scheme->group_size,
                         layer.scheme->symmetric});
  }
  if (std::any_of(formats.begin(), formats.end(), IsFused)) {
    Findings split;
    CheckFusedSets(quantized, plain, &split);
    if (split.refused() && !allow_split_fused_sets) {
      return absl::FailedPreconditionError(
          "rule: " + split.Problems().front() +
          ", or allow the split (--allow-split-fused-sets, in a spec allow_split_fused_sets), with "
          "which vLLM and SGLang will not load the model");
    }
    for (const std::string& problem : split.Problems()) {
      warnings->push_back("vLLM and SGLang will not load this model: " + problem + ".");
    }
  }
  for (const std::string& format : formats) {
    bool known = true;
    for (QuantizedLayer& layer : quantized) {
      const auto layout = LayoutOf(format, layer, quantized);
      known = known && layout.has_value();
      if (layout) layer.layout = *layout;
    }
    if (!known) continue;
    std::vector<Judged> refusals;
    size_t readers = 0;
    for (const Loader loader : {Loader::kTransformers, Loader::kVllm, Loader::kSglang}) {
      if (!ReadsFormat(loader, format)) continue;
      ++readers;
      Findings findings;
      CheckLayers(loader, MethodOf(format), quantized, &findings);
      std::vector<std::string> problems = findings.Problems();
      if (!problems.empty()) refusals.push_back({loader, std::move(problems)});
    }
    if (readers > 0 && refusals.size() == readers) {
      return absl::FailedPreconditionError("format: no loader takes these schemes as " + format +
                                           ": " + refusals.front().problems.front());
    }
    for (const Judged& refusal : refusals) {
      warnings->push_back(std::string(LoaderName(refusal.loader)) + " will not load the format " +
                          format + ": " + absl::StrJoin(refusal.problems, "; ") + ".");
    }
  }
  return absl::OkStatus();
}

}  // namespace ptq
