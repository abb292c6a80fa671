#include "formats/headers/format_rules.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "formats/headers/gguf_types.h"

namespace ptq {
namespace {

// `instead`: formats that can.
absl::Status Refuse(const std::string& format, const PlannedModule& module, const std::string& why,
                    const char* instead) {
  return absl::FailedPreconditionError(
      absl::StrFormat("format: %s can't hold %s: %s; use %s", format, module.module, why, instead));
}

constexpr char kAny[] = "compressed-tensors or affine";
// What transformers 5 calls the head of every family; GPT-NeoX's checkpoints say embed_out.
constexpr char kTransformersHead[] = "lm_head";

absl::Status CheckMultiples(const std::string& format, const PlannedModule& module, int64_t out,
                            int64_t in) {
  if (module.out_features % out != 0) {
    return Refuse(format, module,
                  absl::StrFormat("its %d outputs are no multiple of %d", module.out_features, out),
                  kAny);
  }
  if (module.in_features % in != 0) {
    return Refuse(format, module,
                  absl::StrFormat("its %d inputs are no multiple of %d", module.in_features, in),
                  kAny);
  }
  return absl::OkStatus();
}

absl::Status CheckGptq(const std::string& format, const PlannedModule& module) {
  const int bits = module.scheme.bits;
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) {
    return Refuse(format, module,
                  absl::StrFormat("it has %d bits, and the format 2, 3, 4 or 8", bits), kAny);
  }
  return CheckMultiples(format, module, 32, 32);
}

absl::Status CheckAwq(const std::string& format, const PlannedModule& module) {
  if (module.scheme.bits != 4) {
    return Refuse(format, module,
                  absl::StrFormat("it has %d bits, and the format 4", module.scheme.bits), kAny);
  }
  // transformers' AWQ_SCALES_MAPPINGS, of StarCoder2 and GPT-NeoX: without the tensor the model
  // runs with what its memory held.
  if (format == "awq" && (absl::EndsWith(module.module, ".mlp.c_fc") ||
                          absl::EndsWith(module.module, ".mlp.dense_h_to_4h"))) {
    return Refuse(format, module,
                  "transformers divides the activation behind it by a tensor act.scales, which "
                  "records don't have",
                  "gptq or compressed-tensors");
  }
  return CheckMultiples(format, module, 8, 1);
}

int64_t GroupOf(const PlannedModule& module) {
  return module.scheme.group_size > 0 ? module.scheme.group_size : module.in_features;
}

// Formats whose config names one group size for all layers.
absl::Status CheckOneGroupSize(const std::string& format,
                               const std::vector<PlannedModule>& modules) {
  for (const PlannedModule& module : modules) {
    const bool grouped = module.scheme.group_size > 0;
    const bool first_grouped = modules.front().scheme.group_size > 0;
    if (grouped == first_grouped && (!grouped || GroupOf(module) == GroupOf(modules.front()))) {
      continue;
    }
    return Refuse(format, module,
                  "its group size differs from that of " + modules.front().module +
                      ", and the format has one for all layers",
                  "gptq, compressed-tensors or affine");
  }
  return absl::OkStatus();
}

// What formats can't hold outside of blocks, whatever its scheme; as measured with transformers
// 5.23, torchao 0.18, compressed-tensors 0.20, auto-round 0.16 (tests/interop/vocabulary_test.py).
absl::Status CheckPlace(const std::string& format, const PlannedModule& module) {
  const bool renamed = module.place == ModulePlace::kHead && module.module != kTransformersHead;
  if (module.place == ModulePlace::kBlock || format == "gguf" || format == "dequantized" ||
      (format == "affine" && !renamed)) {
    return absl::OkStatus();
  }
  const char* why = "its loaders know no quantized embedding";
  const char* instead = "affine, gguf or dequantized";
  if (module.place == ModulePlace::kTiedEmbedding) {
    why = "it is the head too (tie_word_embeddings), and its loaders know no quantized embedding";
  } else if (renamed) {
    why = "transformers renames it, and its quantizers look for it by its new name";
    instead = "gguf or dequantized";
  } else if (module.place == ModulePlace::kHead) {
    if (format != "awq") return absl::OkStatus();
    why = "its loaders know no quantized head";
    instead = "gptq, compressed-tensors or affine";
  }
  return absl::FailedPreconditionError(absl::StrFormat(
      "format: %s can't hold %s: %s; leave it alone by a first --rule '%s:skip', or use %s", format,
      module.module, why, module.module, instead));
}

}  // namespace

AutoRoundLayout AutoRoundLayoutOf(const std::vector<PlannedModule>& modules) {
  const auto every = [&modules](auto holds) {
    return std::all_of(modules.begin(), modules.end(), holds);
  };
  if (every([](const PlannedModule& module) { return module.scheme.symmetric; })) {
    return AutoRoundLayout::kGptq;
  }
  return every([](const PlannedModule& module) { return module.scheme.bits == 4; })
             ? AutoRoundLayout::kAwq
             : AutoRoundLayout::kTrueZeros;
}

absl::Status CheckFormatHolds(const std::string& format,
                              const std::vector<PlannedModule>& modules) {
  const bool auto_round = format == "auto-round";
  const bool auto_awq = auto_round && AutoRoundLayoutOf(modules) == AutoRoundLayout::kAwq;
  for (const PlannedModule& module : modules) {
    absl::Status status = CheckPlace(format, module);
    if (!status.ok()) return status;
    if (module.transposed && format != "dequantized" && format != "gguf") {
      return Refuse(format, module,
                    "it is a Conv1D layer, of which transformers has no quantized form",
                    "dequantized or gguf");
    }
    if (module.scheme.k_quant != KQuant::kNone && format != "dequantized" && format != "gguf") {
      return Refuse(format, module,
                    absl::StrFormat("it is to be %s, a type of GGUF alone",
                                    KQuantName(module.scheme.k_quant)),
                    "gguf or dequantized, or another scheme");
    }
    if (format == "gptq") {
      status = CheckGptq(format, module);
    } else if (format == "awq" || auto_awq) {
      status = CheckAwq(format, module);
    } else if (auto_round) {
      status = CheckMultiples(format, module, 32, 32);
    } else if (format == "gguf") {
      status = GgufTypeOf(module).status();
    }
    if (!status.ok()) return status;
  }
  if (format == "awq") return CheckOneGroupSize(format, modules);
  return absl::OkStatus();
}

}  // namespace ptq
