#include "formats/headers/model_config.h"

#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/json.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/headers/config_json.h"
#include "formats/headers/family.h"
#include "formats/headers/quote.h"
#include "formats/headers/rope_config.h"

namespace ptq {
namespace {

// Bounds what one small config.json can make us build; the deepest models have some 130 blocks.
constexpr int64_t kMaxBlocks = 16384;

absl::Status ParseFamily(const Json& json, ModelConfig* config,
                         std::vector<std::string>* warnings) {
  const bool remote_code = FindKey(json, "auto_map") != nullptr;
  const char* refusal =
      remote_code ? ", and the remote code that auto_map names is never executed" : "";
  PTQ_ASSIGN_OR_RETURN(config->model_type, ReadText(json, "model_type", ""));
  if (!IsSupportedModelType(config->model_type)) {
    const std::string supported = absl::StrJoin(SupportedModelTypes(), ", ");
    if (config->model_type.empty() && !remote_code) {
      return absl::InvalidArgumentError("model_type is missing (supported: " + supported + ")");
    }
    return absl::UnimplementedError(
        absl::StrFormat("model_type %s is not supported (supported: %s)%s",
                        Quote(config->model_type), supported, refusal));
  }
  config->architecture = ArchitectureOf(config->model_type);
  if (const Json* architectures = FindKey(json, "architectures"); architectures != nullptr) {
    if (!architectures->is_array() || architectures->size() != 1 ||
        !(*architectures)[0].is_string()) {
      return WrongType("architectures", "an array of one string");
    }
    const std::string& architecture = (*architectures)[0].get_ref<const std::string&>();
    if (architecture != config->architecture) {
      return absl::UnimplementedError(
          absl::StrFormat("architecture %s is not supported for model_type %s (supported: %s)%s",
                          Quote(architecture), config->model_type, config->architecture, refusal));
    }
  }
  if (remote_code) {
    warnings->push_back(
        "config.json: auto_map is ignored: remote code is never executed, the model "
        "is read as " +
        config->architecture);
  }
  return absl::OkStatus();
}

absl::Status RefuseQuantized(const Json& json) {
  for (const char* key : {"quantization_config", "compression_config"}) {
    const Json* value = FindKey(json, key);
    if (value == nullptr) continue;
    std::string method;
    if (value->is_object()) {
      const Json* name = FindKey(*value, "quant_method");
      if (name != nullptr && name->is_string()) method = " " + Quote(name->get<std::string>());
    }
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s%s says that the checkpoint is already quantized: start from the original weights, or "
        "write it in another format with `convert`",
        key, method));
  }
  return absl::OkStatus();
}

// Without the key the family's default; a null is as many as queries.
absl::StatusOr<int64_t> ReadKeyHeads(const Json& json, const ConfigKeys& keys, int64_t heads) {
  if (keys.num_key_value_heads == nullptr) return heads;
  const bool absent = !json.contains(keys.num_key_value_heads);
  const int64_t otherwise = keys.default_num_key_value_heads;
  return ReadSize(json, keys.num_key_value_heads, absent && otherwise > 0 ? otherwise : heads);
}

absl::Status ParseHeads(const Json& json, const ConfigKeys& keys, ModelConfig* config) {
  PTQ_ASSIGN_OR_RETURN(config->num_attention_heads, ReadSize(json, keys.num_attention_heads));
  PTQ_ASSIGN_OR_RETURN(config->num_key_value_heads,
                       ReadKeyHeads(json, keys, config->num_attention_heads));
  if (config->num_attention_heads % config->num_key_value_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("num_key_value_heads (%d) does not divide num_attention_heads (%d)",
                        config->num_key_value_heads, config->num_attention_heads));
  }
  config->head_dim = keys.default_head_dim;
  if (keys.head_dim != nullptr) {
    PTQ_ASSIGN_OR_RETURN(config->head_dim, ReadSize(json, keys.head_dim, keys.default_head_dim));
  }
  if (config->head_dim == 0) {
    if (config->hidden_size % config->num_attention_heads != 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s (%d) does not divide %s (%d)", keys.num_attention_heads,
                          config->num_attention_heads, keys.hidden_size, config->hidden_size));
    }
    config->head_dim = config->hidden_size / config->num_attention_heads;
  }
  return absl::OkStatus();
}

absl::Status ParseSizes(const Json& json, const ConfigKeys& keys, ModelConfig* config) {
  PTQ_ASSIGN_OR_RETURN(config->vocab_size, ReadSize(json, "vocab_size"));
  PTQ_ASSIGN_OR_RETURN(config->hidden_size, ReadSize(json, keys.hidden_size));
  std::optional<int64_t> intermediate;
  if (keys.default_intermediate_factor > 0) {
    intermediate = keys.default_intermediate_factor * config->hidden_size;
  }
  PTQ_ASSIGN_OR_RETURN(config->intermediate_size,
                       ReadSize(json, keys.intermediate_size, intermediate));
  PTQ_ASSIGN_OR_RETURN(config->num_hidden_layers, ReadSize(json, keys.num_hidden_layers));
  if (config->num_hidden_layers > kMaxBlocks) {
    return absl::InvalidArgumentError(absl::StrFormat("%s is %d, above the limit of %d",
                                                      keys.num_hidden_layers,
                                                      config->num_hidden_layers, kMaxBlocks));
  }
  PTQ_RETURN_IF_ERROR(ParseHeads(json, keys, config));
  PTQ_ASSIGN_OR_RETURN(
      config->max_position_embeddings,
      ReadSize(json, keys.max_position_embeddings, keys.default_max_position_embeddings));
  return absl::OkStatus();
}

absl::StatusOr<Activation> ReadActivation(const Json& json, const ConfigKeys& keys) {
  PTQ_ASSIGN_OR_RETURN(const std::string name,
                       ReadText(json, keys.activation, keys.default_activation));
  // transformers computes the tanh form of GELU in several ways, which differ by rounding.
  static const auto* const activations = new std::vector<std::pair<std::string, Activation>>{
      {"silu", Activation::kSilu},         {"swish", Activation::kSilu},
      {"gelu", Activation::kGelu},         {"gelu_pytorch_tanh", Activation::kGeluTanh},
      {"gelu_new", Activation::kGeluTanh}, {"relu", Activation::kRelu}};
  std::vector<std::string> supported;
  for (const auto& [other, activation] : *activations) {
    if (name == other) return activation;
    supported.push_back(other);
  }
  return absl::UnimplementedError(absl::StrFormat("%s %s is not supported (supported: %s)",
                                                  keys.activation, Quote(name),
                                                  absl::StrJoin(supported, ", ")));
}

absl::Status ParseOptions(const Json& json, const Family& family, ModelConfig* config,
                          std::vector<std::string>* warnings) {
  const ConfigKeys& keys = family.keys;
  config->norm_eps = keys.default_norm_eps;
  if (keys.norm_eps != nullptr) {
    PTQ_ASSIGN_OR_RETURN(config->norm_eps,
                         ReadPositiveNumber(json, keys.norm_eps, keys.default_norm_eps));
  }
  PTQ_ASSIGN_OR_RETURN(config->tie_word_embeddings,
                       ReadFlag(json, "tie_word_embeddings", keys.default_tie_word_embeddings));
  PTQ_ASSIGN_OR_RETURN(config->activation, ReadActivation(json, keys));
  PTQ_RETURN_IF_ERROR(family.read_options(json, config, warnings));
  if (!config->attention.rotary) return absl::OkStatus();
  if (config->head_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "head_dim is %d, but rotary embeddings need an even one", config->head_dim));
  }
  if (family.read_rope != nullptr) return family.read_rope(json, config);
  PTQ_ASSIGN_OR_RETURN(config->rope, ReadRope(json, family.rope, *config));
  return absl::OkStatus();
}

absl::Status ParseDtype(const Json& json, ModelConfig* config) {
  const char* key = FindKey(json, "dtype") != nullptr ? "dtype" : "torch_dtype";
  PTQ_ASSIGN_OR_RETURN(std::string name, ReadText(json, key, ""));
  if (name.empty()) return absl::OkStatus();
  if (name.rfind("torch.", 0) == 0) name = name.substr(6);
  if (name == "bfloat16") {
    config->dtype = DType::kBF16;
  } else if (name == "float16") {
    config->dtype = DType::kF16;
  } else if (name == "float32") {
    config->dtype = DType::kF32;
  } else {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is %s; bfloat16, float16 and float32 are supported", key, Quote(name)));
  }
  config->has_dtype = true;
  return absl::OkStatus();
}

absl::Status ParseEndOfText(const Json& json, ModelConfig* config,
                            std::vector<std::string>* warnings) {
  const Json* value = FindKey(json, "eos_token_id");
  if (value == nullptr) return absl::OkStatus();
  const Json ids = value->is_array() ? *value : Json::array({*value});
  for (const Json& id : ids) {
    if (!id.is_number_integer()) {
      return WrongType("eos_token_id", "an integer or an array of integers");
    }
    if (id.is_number_unsigned() && id.get<uint64_t>() < static_cast<uint64_t>(config->vocab_size)) {
      config->eos_token_ids.push_back(id.get<int64_t>());
    } else {
      warnings->push_back(absl::StrFormat(
          "config.json: eos_token_id %s is ignored: it is outside the vocabulary of "
          "%d tokens",
          DumpJson(id), config->vocab_size));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ModelConfig> Parse(std::string_view text, std::vector<std::string>* warnings) {
  PTQ_ASSIGN_OR_RETURN(const Json json, ParseJson(text));
  if (!json.is_object()) return absl::InvalidArgumentError("not a JSON object");
  ModelConfig config;
  PTQ_RETURN_IF_ERROR(ParseFamily(json, &config, warnings));
  PTQ_RETURN_IF_ERROR(RefuseQuantized(json));
  const Family& family = *FindFamily(config.model_type);
  PTQ_RETURN_IF_ERROR(ParseSizes(json, family.keys, &config));
  PTQ_RETURN_IF_ERROR(ParseOptions(json, family, &config, warnings));
  PTQ_RETURN_IF_ERROR(ParseDtype(json, &config));
  PTQ_RETURN_IF_ERROR(ParseEndOfText(json, &config, warnings));
  return config;
}

}  // namespace

bool ModelConfig::IsSliding(int64_t block) const {
  return static_cast<size_t>(block) < attention.sliding.size() &&
         attention.sliding[static_cast<size_t>(block)];
}

bool ModelConfig::IsRouted(int64_t block) const {
  return block >= 0 && static_cast<size_t>(block) < experts.routed.size() &&
         experts.routed[static_cast<size_t>(block)];
}

int64_t ModelConfig::WindowOf(int64_t block) const {
  return IsSliding(block) ? attention.sliding_window : 0;
}

int64_t ModelConfig::RotaryDim() const {
  if (!attention.rotary) return 0;
  const auto rotated =
      static_cast<int64_t>(static_cast<double>(head_dim) * rope.partial_rotary_factor);
  return (rotated + 1) / 2 * 2;
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json,
                                             std::vector<std::string>* warnings) {
  auto config = Parse(json, warnings);
  if (!config.ok()) return Annotate(config.status(), "config.json");
  return config;
}

}  // namespace ptq
