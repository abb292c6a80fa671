// What a job is to do: the file job.json, the flags of `ptq`, and the server's stored spec are
// three spellings of this struct. Torch-free and protobuf-free, because ptqd and ptq-worker both
// need it.
#ifndef PTQ_WORKER_SPEC_JOB_SPEC_H_
#define PTQ_WORKER_SPEC_JOB_SPEC_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/json.h"
#include "common/quantization_scheme.h"

namespace ptq {

// Names stand in the order of the enum. Flags, API and capabilities follow these lists.
// Convert: the model is quantized already, and is written in other formats.
enum class Task { kQuantize, kConvert };
inline constexpr std::array kTaskNames = {"quantize", "convert"};
enum class Algorithm { kAutoRound, kGptq, kOptRtn, kRtn };
inline constexpr std::array kAlgorithmNames = {"auto-round", "gptq", "opt-rtn", "rtn"};
inline constexpr std::array kOutputFormatNames = {
    "affine", "compressed-tensors", "gptq", "awq", "auto-round", "gguf", "dequantized"};
enum class DeviceChoice { kAuto, kCpu, kCuda };
inline constexpr std::array kDeviceNames = {"auto", "cpu", "cuda"};
inline constexpr std::array kScaleRuleNames = {"full-range", "torchao"};
// How auto-round tunes. Paper: as published; the others: this project's recipe, for so many steps.
enum class TuningRecipe { kPaper, kFast, kDefault, kBest };
inline constexpr std::array kRecipeNames = {"paper", "fast", "default", "best"};
inline constexpr std::array<int64_t, kRecipeNames.size()> kRecipeIterations = {200, 20, 60, 100};
// Of auto-round's products while it tunes a block. Bf16: the compute dtype, which need not be
// bfloat16. Auto: fp8 where the device and the model allow it, with every recipe but paper.
enum class PrecisionChoice { kAuto, kBf16, kFp8 };
inline constexpr std::array kPrecisionNames = {"auto", "bf16", "fp8"};
// Whether a job on a GPU saves device memory for time. Auto: as far as its memory asks for it.
enum class LowMemory { kAuto, kOn };
inline constexpr std::array kLowMemoryNames = {"auto", "on"};

const char* AlgorithmName(Algorithm algorithm);
const char* DeviceName(DeviceChoice device);
const char* LowMemoryName(LowMemory choice);
const char* PrecisionName(PrecisionChoice precision);
const char* RecipeName(TuningRecipe recipe);
const char* ScaleRuleName(ScaleRule rule);
const char* TaskName(Task task);
absl::StatusOr<Algorithm> ParseAlgorithm(const std::string& name);
absl::StatusOr<DeviceChoice> ParseDevice(const std::string& name);
absl::StatusOr<LowMemory> ParseLowMemory(const std::string& name);
// In any case of letters.
absl::StatusOr<KQuant> ParseKQuant(const std::string& name);
// One or several of kOutputFormatNames, in its order.
absl::StatusOr<std::vector<std::string>> ParseOutputFormats(const std::vector<std::string>& names);
absl::StatusOr<PrecisionChoice> ParsePrecision(const std::string& name);
absl::StatusOr<TuningRecipe> ParseRecipe(const std::string& name);
absl::StatusOr<ScaleRule> ParseScaleRule(const std::string& name);
absl::StatusOr<Task> ParseTask(const std::string& name);

// Defaults are the documented ones of the command line.
struct JobSpec {
  Task task = Task::kQuantize;  // a conversion has a model and formats, and nothing else
  std::string model;            // folder; of a conversion also a .gguf file
  std::string calibration;      // file, or "" (allowed for rtn alone)
  std::string evaluation;       // file, or "": no evaluation

  Algorithm algorithm = Algorithm::kAutoRound;
  // A name of presets.h, or "". It sets the next four, and rules that follow those of `rule`.
  std::string preset;
  // A K-quant of GGUF, which sets the next three.
  KQuant scheme = KQuant::kNone;
  int bits = 4;              // 2..8
  int64_t group_size = 128;  // -1 channel, 0 tensor
  bool asymmetric = false;
  ScaleRule scale_rule = ScaleRule::kFullRange;  // torchao: rtn only
  TuningRecipe recipe = TuningRecipe::kDefault;  // auto-round
  int64_t iterations = 0;                        // auto-round; 0: the recipe's
  int64_t batch_size = 8;                        // sequences a step, auto-round
  // Calibration tokens that auto-round's Fisher metric is estimated from, not with recipe paper.
  // -1: the smaller of the data and max(16384, 16 * width); 0: plain mean squared error.
  int64_t fisher_tokens = -1;
  // Of auto-round's products while it tunes.
  PrecisionChoice tuning_precision = PrecisionChoice::kAuto;
  int64_t samples = 128;  // calibration windows
  int64_t sequence_length = 2048;
  uint64_t seed = 42;
  DeviceChoice device = DeviceChoice::kAuto;
  LowMemory low_memory = LowMemory::kAuto;
  int64_t evaluation_window = 0;                 // 0: sequence_length
  int64_t evaluation_samples = 128;              // windows; 0: all
  std::vector<std::string> format = {"affine"};  // as ParseOutputFormats gives them
  std::vector<std::string> rule;  // "PATTERN:bits=8,group_size=32" or "PATTERN:skip", in order
  // Rules may give the members of a fused set (q, k and v; gate and up) different schemes, which
  // vLLM and SGLang then can't load.
  bool allow_split_fused_sets = false;

  int64_t EffectiveIterations() const {
    return iterations != 0 ? iterations : kRecipeIterations[static_cast<size_t>(recipe)];
  }
  int64_t EffectiveEvaluationWindow() const {
    return evaluation_window > 0 ? evaluation_window : sequence_length;
  }
  QuantizationScheme DefaultScheme() const {
    return {bits, group_size, !asymmetric, scale_rule, scheme};
  }
  bool operator==(const JobSpec&) const = default;
};

// Makes `spec` one of the preset: its name, scheme, bits, group_size and asymmetric.
// kInvalidArgument listing the names.
absl::Status UsePreset(const std::string& name, JobSpec* spec);
// The same of a K-quant by name, "Q4_K" in any case of letters: scheme, bits, group_size and
// asymmetric.
absl::Status UseScheme(const std::string& name, JobSpec* spec);

// Every key of the struct but `task`, in the struct's order, defaults included; of a conversion
// task, model and format alone. Of `format` a list, also of one; what is read may be a string, with
// commas.
Json JobSpecToJson(const JobSpec& spec);
// Unknown keys and wrong types are kInvalidArgument naming the key, and so is bits, group_size or
// asymmetric beside a preset or a scheme with another value than theirs; ranges are
// ValidateJobSpec's.
absl::StatusOr<JobSpec> JobSpecFromJson(const Json& json);
absl::StatusOr<JobSpec> ParseJobSpec(std::string_view text);

// Ranges and combinations that need no model: bits 2..8, group_size -1, 0 or positive, sizes
// positive, torchao's rule with rtn only, auto-round's options with auto-round only, no
// fisher_tokens with recipe paper, no K-quant by auto-round, calibration present unless rtn, rule
// syntax and RE2 patterns; of a conversion, that nothing but model and format is set.
// kInvalidArgument: "bits: 9 is not in 2..8".
absl::Status ValidateJobSpec(const JobSpec& spec);

}  // namespace ptq

#endif  // PTQ_WORKER_SPEC_JOB_SPEC_H_
