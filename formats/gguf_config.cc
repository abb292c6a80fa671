#include "formats/gguf_config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <optional>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "formats/gguf_metadata.h"
#include "formats/gguf_names.h"
#include "formats/headers/quote.h"
#include "formats/headers/tensor_table.h"

namespace ptq {
namespace {

constexpr char kPassConfig[] =
    "put the original config.json beside the file, or name its folder by --config";

std::optional<double> ToNumber(const GgufValue& value) {
  if (const auto* number = std::get_if<uint32_t>(&value)) return *number;
  if (const auto* number = std::get_if<int64_t>(&value)) return static_cast<double>(*number);
  if (const auto* number = std::get_if<float>(&value)) return static_cast<double>(*number);
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? 1 : 0;
  return std::nullopt;
}

// The shortest decimal number that is `value` as a float: 1e-05 rather than 9.99999974e-06.
double Shortest(double value) {
  char text[64];
  const auto end = std::to_chars(text, text + sizeof(text) - 1, static_cast<float>(value));
  *end.ptr = '\0';
  return std::strtod(text, nullptr);
}

// Reads "<architecture>.<name>".
class Keys {
 public:
  Keys(const GgufFile& file, std::string architecture)
      : file_(file), prefix_(std::move(architecture) + ".") {}

  std::optional<double> Real(const std::string& name) const {
    const GgufValue* value = FindGgufValue(file_, prefix_ + name);
    const auto number = value == nullptr ? std::nullopt : ToNumber(*value);
    return number ? std::optional(Shortest(*number)) : std::nullopt;
  }
  absl::StatusOr<int64_t> Integer(const std::string& name) const {
    const GgufValue* value = FindGgufValue(file_, prefix_ + name);
    if (value == nullptr) return absl::InvalidArgumentError("there is no key " + prefix_ + name);
    if (const auto* number = std::get_if<uint32_t>(value)) return *number;
    // One number a block, of which one for all is config.json's.
    if (const auto* list = std::get_if<std::vector<int32_t>>(value);
        list != nullptr && !list->empty()) {
      for (const int32_t item : *list) {
        if (item != list->front()) return Varies(name);
      }
      return list->front();
    }
    return absl::InvalidArgumentError(prefix_ + name + " is no integer");
  }
  absl::StatusOr<int64_t> Integer(const std::string& name, int64_t otherwise) const {
    return FindGgufValue(file_, prefix_ + name) == nullptr ? absl::StatusOr<int64_t>(otherwise)
                                                           : Integer(name);
  }
  std::string Text(const std::string& name) const { return GgufText(file_, prefix_ + name); }
  std::string Name(const std::string& name) const { return prefix_ + name; }

 private:
  absl::Status Varies(const std::string& name) const {
    return absl::FailedPreconditionError(prefix_ + name +
                                         " differs between blocks, which config.json can't say");
  }

  const GgufFile& file_;
  const std::string prefix_;
};

// What config.json calls it, of the architectures whose keys determine a config.json.
absl::StatusOr<std::string> ModelTypeOf(const GgufFile& file) {
  const std::string architecture = GgufText(file, "general.architecture");
  if (architecture == "llama") {
    // Files of our own say which family it was; without a window both compute the same.
    return std::string(GgufText(file, "general.name") == "mistral" ? "mistral" : "llama");
  }
  if (architecture == "qwen2" || architecture == "qwen3" || architecture == "gemma2") {
    return architecture;
  }
  if (architecture == "gemma3") return std::string("gemma3_text");
  return absl::UnimplementedError(absl::StrCat(
      "general.architecture ", Quote(architecture),
      ": its keys don't say all of a config.json (those of llama, qwen2, qwen3, gemma2 "
      "and gemma3 do); ",
      kPassConfig));
}

// But for the rounding of programs that compute them in float32.
bool AreSameFactors(const std::vector<float>& stored, const std::vector<float>& ours) {
  return std::equal(stored.begin(), stored.end(), ours.begin(), ours.end(),
                    [](float a, float b) { return std::fabs(a / b - 1) < 1e-5f; });
}

// Llama 3's scaling, of which the file has the factors that follow from it.
absl::StatusOr<Json> RopeOfFactors(const GgufFile& file, const GgufTensorInfo& factors,
                                   int64_t head_dim, double theta) {
  if (factors.type != GgufType::kF32 || factors.shape.size() != 1 ||
      factors.shape[0] != head_dim / 2) {
    return absl::FailedPreconditionError("tensor rope_freqs.weight: another type or shape");
  }
  std::vector<float> stored(static_cast<size_t>(factors.shape[0]));
  PTQ_RETURN_IF_ERROR(file.Read(factors, 0, factors.bytes(), stored.data()));
  ModelConfig config;
  config.head_dim = head_dim;
  config.rope.type = RopeConfig::Type::kLlama3;
  config.rope.theta = theta;
  config.rope.factor = Shortest(static_cast<double>(stored.back()));
  for (const int64_t original : {8192, 4096, 2048, 16384, 32768, 1024, 512, 256, 128, 64}) {
    config.rope.original_max_position_embeddings = original;
    if (!AreSameFactors(stored, GgufRopeFactors(config).front().second)) continue;
    return Json{{"rope_type", "llama3"},
                {"rope_theta", theta},
                {"factor", config.rope.factor},
                {"low_freq_factor", config.rope.low_freq_factor},
                {"high_freq_factor", config.rope.high_freq_factor},
                {"original_max_position_embeddings", original}};
  }
  return absl::FailedPreconditionError(
      absl::StrCat("tensor rope_freqs.weight: no parameters of Llama 3's scaling give these "
                   "factors; ",
                   kPassConfig));
}

absl::StatusOr<Json> RopeOf(const GgufFile& file, const Keys& keys, int64_t head_dim) {
  const double theta = keys.Real("rope.freq_base").value_or(10000.0);
  if (const GgufTensorInfo* factors = file.Find("rope_freqs.weight")) {
    return RopeOfFactors(file, *factors, head_dim, theta);
  }
  const std::string type = keys.Text("rope.scaling.type");
  Json rope = {{"rope_type", "default"}, {"rope_theta", theta}};
  if (type.empty() || type == "none") return rope;
  if (type != "linear" && type != "yarn") {
    return absl::FailedPreconditionError(
        absl::StrCat(keys.Name("rope.scaling.type"), " ", Quote(type), ": ", kPassConfig));
  }
  const auto factor = keys.Real("rope.scaling.factor");
  if (!factor) {
    return absl::InvalidArgumentError("there is no key " + keys.Name("rope.scaling.factor"));
  }
  rope["rope_type"] = type;
  rope["factor"] = *factor;
  if (type == "linear") return rope;
  PTQ_ASSIGN_OR_RETURN(rope["original_max_position_embeddings"],
                       keys.Integer("rope.scaling.original_context_length"));
  if (const auto fast = keys.Real("rope.scaling.yarn_beta_fast")) rope["beta_fast"] = *fast;
  if (const auto slow = keys.Real("rope.scaling.yarn_beta_slow")) rope["beta_slow"] = *slow;
  if (const auto attention = keys.Real("rope.scaling.attn_factor")) {
    rope["attention_factor"] = *attention * (0.1 * std::log(*factor) + 1.0);
  }
  return rope;
}

// Windows, caps and scales of Gemma.
absl::Status AddGemma(const Keys& keys, const std::string& model_type, int64_t blocks,
                      int64_t head_dim, Json& config) {
  const bool second = model_type == "gemma2";
  PTQ_ASSIGN_OR_RETURN(config["sliding_window"],
                       keys.Integer("attention.sliding_window", second ? 4096 : 1024));
  PTQ_ASSIGN_OR_RETURN(const int64_t period,
                       keys.Integer("attention.sliding_window_pattern", second ? 2 : 6));
  Json types = Json::array();
  for (int64_t block = 0; block < blocks; ++block) {
    const bool slides = period == 0 || block % period + 1 < period;
    types.push_back(slides ? "sliding_attention" : "full_attention");
  }
  config["layer_types"] = std::move(types);
  // llama.cpp derives the scale; of the 27B models from the hidden size.
  const bool is_27b = blocks == (second ? 46 : 62);
  config["query_pre_attn_scalar"] =
      is_27b ? config["hidden_size"].get<int64_t>() / config["num_attention_heads"].get<int64_t>()
             : head_dim;
  if (second) {
    const auto attention = keys.Real("attn_logit_softcapping");
    const auto last = keys.Real("final_logit_softcapping");
    config["attn_logit_softcapping"] = attention ? Json(*attention) : Json(50.0);
    config["final_logit_softcapping"] = last ? Json(*last) : Json(30.0);
  } else {
    // The scaling is that of blocks without a window.
    const Json full = config["rope_parameters"];
    config["rope_parameters"] = {
        {"full_attention", full},
        {"sliding_attention",
         {{"rope_type", "default"},
          {"rope_theta", keys.Real("rope.freq_base_swa").value_or(10000.0)}}}};
  }
  return absl::OkStatus();
}

// The dtype in which llama.cpp's converter was given the weights, as far as it shows.
const char* DtypeOf(const GgufTensorInfo& embedding) {
  if (embedding.type == GgufType::kBF16) return "bfloat16";
  return embedding.type == GgufType::kF32 ? "float32" : "float16";
}

// The factors of rotary frequencies that the file has as tensors are those of config.json.
absl::Status CheckRopeFactors(const GgufFile& file, const ModelConfig& config) {
  const auto expected = GgufRopeFactors(config);
  for (const char* name : kGgufRopeTensors) {
    const auto ours = std::find_if(expected.begin(), expected.end(),
                                   [name](const auto& tensor) { return tensor.first == name; });
    const GgufTensorInfo* info = file.Find(name);
    bool same = (info != nullptr) == (ours != expected.end());
    if (same && info != nullptr) {
      std::vector<float> stored(ours->second.size());
      same = info->type == GgufType::kF32 &&
             info->bytes() == static_cast<int64_t>(stored.size() * sizeof(float));
      if (same) PTQ_RETURN_IF_ERROR(file.Read(*info, 0, info->bytes(), stored.data()));
      same = same && AreSameFactors(stored, ours->second);
    }
    if (same) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("tensor ", name, info == nullptr ? " is missing" : " has other factors",
                     ", by config.json's rope parameters: they are of different models"));
  }
  return absl::OkStatus();
}

}  // namespace

const GgufValue* FindGgufValue(const GgufFile& file, const std::string& key) {
  for (const auto& [name, value] : file.metadata()) {
    if (name == key) return &value;
  }
  return nullptr;
}

std::string GgufText(const GgufFile& file, const std::string& key) {
  const GgufValue* value = FindGgufValue(file, key);
  const auto* text = value == nullptr ? nullptr : std::get_if<std::string>(value);
  return text == nullptr ? "" : *text;
}

absl::StatusOr<Json> ConfigOfGguf(const GgufFile& file) {
  PTQ_ASSIGN_OR_RETURN(const std::string model_type, ModelTypeOf(file));
  const Keys keys(file, GgufText(file, "general.architecture"));
  if (const auto experts = keys.Integer("expert_count", 0); experts.ok() && *experts > 0) {
    return absl::UnimplementedError(absl::StrCat(keys.Name("expert_count"), ": ", kPassConfig));
  }
  const GgufTensorInfo* embedding = file.Find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    return absl::InvalidArgumentError("there is no tensor token_embd.weight");
  }
  Json config;
  config["architectures"] = Json::array({ArchitectureOf(model_type)});
  config["model_type"] = model_type;
  config["vocab_size"] = embedding->shape[0];
  PTQ_ASSIGN_OR_RETURN(const int64_t hidden, keys.Integer("embedding_length"));
  PTQ_ASSIGN_OR_RETURN(const int64_t blocks, keys.Integer("block_count"));
  PTQ_ASSIGN_OR_RETURN(const int64_t heads, keys.Integer("attention.head_count"));
  if (heads <= 0) return absl::InvalidArgumentError(keys.Name("attention.head_count") + " is 0");
  config["hidden_size"] = hidden;
  PTQ_ASSIGN_OR_RETURN(config["intermediate_size"], keys.Integer("feed_forward_length"));
  config["num_hidden_layers"] = blocks;
  config["num_attention_heads"] = heads;
  PTQ_ASSIGN_OR_RETURN(config["num_key_value_heads"],
                       keys.Integer("attention.head_count_kv", heads));
  PTQ_ASSIGN_OR_RETURN(const int64_t head_dim,
                       keys.Integer("attention.key_length", hidden / heads));
  config["head_dim"] = head_dim;
  PTQ_ASSIGN_OR_RETURN(config["max_position_embeddings"], keys.Integer("context_length"));
  const auto epsilon = keys.Real("attention.layer_norm_rms_epsilon");
  if (!epsilon) {
    return absl::InvalidArgumentError("there is no key " +
                                      keys.Name("attention.layer_norm_rms_epsilon"));
  }
  config["rms_norm_eps"] = *epsilon;
  PTQ_ASSIGN_OR_RETURN(config["rope_parameters"], RopeOf(file, keys, head_dim));
  config["tie_word_embeddings"] = file.Find("output.weight") == nullptr;
  if (absl::StartsWith(model_type, "gemma")) {
    config["hidden_activation"] = "gelu_pytorch_tanh";
    PTQ_RETURN_IF_ERROR(AddGemma(keys, model_type, blocks, head_dim, config));
  } else {
    config["hidden_act"] = "silu";
  }
  if (model_type == "mistral") config["sliding_window"] = nullptr;
  if (model_type == "llama" || model_type == "qwen3") {
    config["attention_bias"] = file.Find("blk.0.attn_q.bias") != nullptr;
  }
  if (model_type == "llama") config["mlp_bias"] = file.Find("blk.0.ffn_gate.bias") != nullptr;
  for (const auto& [key, name] : {std::pair("bos_token_id", "tokenizer.ggml.bos_token_id"),
                                  std::pair("eos_token_id", "tokenizer.ggml.eos_token_id"),
                                  std::pair("pad_token_id", "tokenizer.ggml.padding_token_id")}) {
    const GgufValue* value = FindGgufValue(file, name);
    const auto* id = value == nullptr ? nullptr : std::get_if<uint32_t>(value);
    if (id != nullptr) config[key] = *id;
  }
  config["dtype"] = DtypeOf(*embedding);
  return config;
}

absl::Status CheckGgufConfig(const GgufFile& file, const ModelConfig& config) {
  PTQ_ASSIGN_OR_RETURN(const GgufFamily family, GgufFamilyOf(config));
  const std::string architecture = GgufText(file, "general.architecture");
  if (architecture != family.architecture) {
    return absl::FailedPreconditionError(absl::StrCat(
        "general.architecture is ", Quote(architecture), ", but a model of config.json's ",
        "model_type ", config.model_type, " is ", Quote(family.architecture)));
  }
  PTQ_ASSIGN_OR_RETURN(const GgufMetadata expected,
                       GgufModelMetadata(family, config, GgufType::kF16));
  for (const auto& [key, value] : expected) {
    // Not in the files of every writer, or of no meaning for what is computed.
    if (absl::StartsWith(key, "general.")) continue;
    const GgufValue* found = FindGgufValue(file, key);
    if (found == nullptr) continue;
    const auto ours = ToNumber(value);
    const auto theirs = ToNumber(*found);
    if (!ours || !theirs || std::fabs(*ours - *theirs) <= 1e-6 * std::fabs(*ours)) continue;
    // A shorter context than the model's is no other model.
    if (absl::EndsWith(key, ".context_length")) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        key, " is ", *theirs, ", but config.json says ", *ours, ": they are of different models"));
  }
  const bool scales = !GgufText(file, architecture + ".rope.scaling.type").empty() &&
                      GgufText(file, architecture + ".rope.scaling.type") != "none";
  bool expected_scales = false;
  for (const auto& [key, value] : expected) {
    expected_scales = expected_scales || absl::StrContains(key, ".rope.scaling.");
  }
  if (scales && !expected_scales) {
    return absl::FailedPreconditionError(
        absl::StrCat(architecture, ".rope.scaling.type is ",
                     Quote(GgufText(file, architecture + ".rope.scaling.type")),
                     ", but config.json scales no rotary frequencies"));
  }
  return CheckRopeFactors(file, config);
}

}  // namespace ptq
