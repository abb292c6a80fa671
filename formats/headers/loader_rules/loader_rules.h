// What transformers, vLLM, SGLang and llama.cpp ask of the files that they load, as rules over
// headers and JSON: which of them loads a folder, and if not, what stands in the way.
//
// The rules were read in the loaders' own sources; each stands beside the name of its source. A
// loader changes with every release, and so may they: tests hold transformers' against transformers
// itself, while vLLM and SGLang need a GPU and are not run.
#ifndef PTQ_FORMATS_HEADERS_LOADER_RULES_LOADER_RULES_H_
#define PTQ_FORMATS_HEADERS_LOADER_RULES_LOADER_RULES_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/json.h"

namespace ptq {

// Names stand in the order of the enum.
enum class Loader { kTransformers, kVllm, kSglang, kLlamaCpp };
inline constexpr std::array kLoaderNames = {"transformers", "vllm", "sglang", "llama.cpp"};

// kNotChecked: nothing known is wrong, but the rules of these files are not known here either.
enum class Verdict { kLoads, kLoadsWithRemark, kNotChecked, kDoesNotLoad };
inline constexpr std::array kVerdictNames = {"loads", "loads_with_remark", "not_checked",
                                             "does_not_load"};

const char* LoaderName(Loader loader);
const char* VerdictName(Verdict verdict);
// kInvalidArgument listing the names.
absl::StatusOr<Loader> ParseLoader(const std::string& name);

struct LoaderVerdict {
  Loader loader = Loader::kTransformers;
  Verdict verdict = Verdict::kLoads;
  // Sentences, each with the tensor, file or key that it is about, the rule, and what to do.
  // `problems` is empty unless the verdict is kDoesNotLoad.
  std::vector<std::string> problems;
  std::vector<std::string> remarks;
  std::string needs;  // beside the loader itself: "gptqmodel >= 1.4.3 and optimum >= 1.24"; or ""
};

struct FolderCheck {
  std::string method;  // quant_method of config.json, "gguf", or "none" for plain weights
  int64_t quantized_layers = 0;
  std::array<LoaderVerdict, kLoaderNames.size()> verdicts;  // in the order of Loader
};

// Checks what `path` holds: a folder with config.json and safetensors files, a folder with one
// .gguf file, or such a file. Reads headers and JSON only. An error means that there is nothing to
// judge (kNotFound; kInvalidArgument: no model there, config.json is no JSON object); a damaged
// model is not an error but one that no loader loads.
absl::StatusOr<FolderCheck> CheckFolder(const std::string& path);

// {method, quantized_layers, loaders: [{loader, verdict, problems, remarks, needs}]}, for reports
// and --json.
Json FolderCheckToJson(const FolderCheck& check);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_LOADER_RULES_LOADER_RULES_H_
