#include "formats/headers/model_config.h"

#include <cmath>
#include <initializer_list>
#include <optional>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/json.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/headers/quote.h"
#include "formats/headers/tensor_table.h"

namespace ptq {
namespace {

constexpr int64_t kSizeLimit = int64_t{1} << 31;
// Bounds what one small config.json can make us build; the deepest models have some 130 blocks.
constexpr int64_t kMaxBlocks = 16384;

// nullptr for a key that is absent or null: transformers treats both alike.
const Json* Find(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

absl::Status WrongType(const char* key, const char* expected) {
  return absl::InvalidArgumentError(absl::StrFormat("%s must be %s", key, expected));
}

// An integer in 1 .. 2^31 - 1.
absl::StatusOr<int64_t> Size(const Json& object, const char* key,
                             std::optional<int64_t> otherwise = std::nullopt) {
  const Json* value = Find(object, key);
  if (value == nullptr) {
    if (otherwise.has_value()) return *otherwise;
    return absl::InvalidArgumentError(absl::StrFormat("%s is missing", key));
  }
  if (!value->is_number_integer()) return WrongType(key, "an integer");
  const bool fits =
      value->is_number_unsigned() && value->get<uint64_t>() < static_cast<uint64_t>(kSizeLimit);
  if (!fits || value->get<int64_t>() == 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is %s, not in 1..%d", key, DumpJson(*value), kSizeLimit - 1));
  }
  return value->get<int64_t>();
}

absl::StatusOr<double> Number(const Json& object, const char* key,
                              std::optional<double> otherwise = std::nullopt) {
  const Json* value = Find(object, key);
  if (value == nullptr) {
    if (otherwise.has_value()) return *otherwise;
    return absl::InvalidArgumentError(absl::StrFormat("%s is missing", key));
  }
  if (!value->is_number()) return WrongType(key, "a number");
  return value->get<double>();
}

absl::StatusOr<double> PositiveNumber(const Json& object, const char* key,
                                      std::optional<double> otherwise = std::nullopt) {
  PTQ_ASSIGN_OR_RETURN(const double value, Number(object, key, otherwise));
  if (!(value > 0)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is %g, but must be positive", key, value));
  }
  return value;
}

absl::StatusOr<bool> Flag(const Json& object, const char* key, bool otherwise) {
  const Json* value = Find(object, key);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean()) return WrongType(key, "true or false");
  return value->get<bool>();
}

absl::StatusOr<std::string> Text(const Json& object, const char* key,
                                 const std::string& otherwise) {
  const Json* value = Find(object, key);
  if (value == nullptr) return otherwise;
  if (!value->is_string()) return WrongType(key, "a string");
  return value->get<std::string>();
}

absl::Status ParseFamily(const Json& json, ModelConfig* config,
                         std::vector<std::string>* warnings) {
  const bool remote_code = Find(json, "auto_map") != nullptr;
  const char* refusal =
      remote_code ? ", and the remote code that auto_map names is never executed" : "";
  PTQ_ASSIGN_OR_RETURN(config->model_type, Text(json, "model_type", ""));
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
  if (const Json* architectures = Find(json, "architectures"); architectures != nullptr) {
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
    const Json* value = Find(json, key);
    if (value == nullptr) continue;
    std::string method;
    if (value->is_object()) {
      const Json* name = Find(*value, "quant_method");
      if (name != nullptr && name->is_string()) method = " " + Quote(name->get<std::string>());
    }
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s%s says that the checkpoint is already quantized: start from the original weights", key,
        method));
  }
  return absl::OkStatus();
}

absl::Status ParseSizes(const Json& json, ModelConfig* config) {
  PTQ_ASSIGN_OR_RETURN(config->vocab_size, Size(json, "vocab_size"));
  PTQ_ASSIGN_OR_RETURN(config->hidden_size, Size(json, "hidden_size"));
  PTQ_ASSIGN_OR_RETURN(config->intermediate_size, Size(json, "intermediate_size"));
  PTQ_ASSIGN_OR_RETURN(config->num_hidden_layers, Size(json, "num_hidden_layers"));
  if (config->num_hidden_layers > kMaxBlocks) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "num_hidden_layers is %d, above the limit of %d", config->num_hidden_layers, kMaxBlocks));
  }
  PTQ_ASSIGN_OR_RETURN(config->num_attention_heads, Size(json, "num_attention_heads"));
  PTQ_ASSIGN_OR_RETURN(config->num_key_value_heads,
                       Size(json, "num_key_value_heads", config->num_attention_heads));
  if (config->hidden_size % config->num_attention_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("num_attention_heads (%d) does not divide hidden_size (%d)",
                        config->num_attention_heads, config->hidden_size));
  }
  if (config->num_attention_heads % config->num_key_value_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("num_key_value_heads (%d) does not divide num_attention_heads (%d)",
                        config->num_key_value_heads, config->num_attention_heads));
  }
  PTQ_ASSIGN_OR_RETURN(config->head_dim,
                       Size(json, "head_dim", config->hidden_size / config->num_attention_heads));
  if (config->head_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "head_dim is %d, but rotary embeddings need an even one", config->head_dim));
  }
  // LlamaConfig's default: the first conversions of Llama have another key in its place.
  PTQ_ASSIGN_OR_RETURN(config->max_position_embeddings,
                       Size(json, "max_position_embeddings", 2048));
  return absl::OkStatus();
}

absl::Status ParseOptions(const Json& json, ModelConfig* config) {
  PTQ_ASSIGN_OR_RETURN(config->rms_norm_eps, PositiveNumber(json, "rms_norm_eps", 1e-6));
  PTQ_ASSIGN_OR_RETURN(config->attention_bias, Flag(json, "attention_bias", false));
  PTQ_ASSIGN_OR_RETURN(config->mlp_bias, Flag(json, "mlp_bias", false));
  PTQ_ASSIGN_OR_RETURN(config->tie_word_embeddings, Flag(json, "tie_word_embeddings", false));
  PTQ_ASSIGN_OR_RETURN(config->hidden_act, Text(json, "hidden_act", "silu"));
  if (config->hidden_act == "swish") config->hidden_act = "silu";  // two names of one function
  if (config->hidden_act != "silu") {
    return absl::UnimplementedError(absl::StrFormat(
        "hidden_act %s is not supported (supported: silu)", Quote(config->hidden_act)));
  }
  return absl::OkStatus();
}

absl::Status ParseDtype(const Json& json, ModelConfig* config) {
  const char* key = Find(json, "dtype") != nullptr ? "dtype" : "torch_dtype";
  PTQ_ASSIGN_OR_RETURN(std::string name, Text(json, key, ""));
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
  const Json* value = Find(json, "eos_token_id");
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

absl::StatusOr<RopeConfig::Type> ParseRopeType(const Json& parameters) {
  PTQ_ASSIGN_OR_RETURN(const std::string old_spelling, Text(parameters, "type", "default"));
  PTQ_ASSIGN_OR_RETURN(const std::string name, Text(parameters, "rope_type", old_spelling));
  if (name == "default") return RopeConfig::Type::kDefault;
  if (name == "linear") return RopeConfig::Type::kLinear;
  if (name == "dynamic") return RopeConfig::Type::kDynamic;
  if (name == "llama3") return RopeConfig::Type::kLlama3;
  if (name == "yarn") return RopeConfig::Type::kYarn;
  return absl::UnimplementedError(absl::StrFormat(
      "rope_type %s is not supported (supported: default, linear, dynamic, llama3, yarn)",
      Quote(name)));
}

absl::Status ParseLlama3(const Json& parameters, RopeConfig* rope) {
  PTQ_ASSIGN_OR_RETURN(rope->low_freq_factor, PositiveNumber(parameters, "low_freq_factor"));
  PTQ_ASSIGN_OR_RETURN(rope->high_freq_factor, PositiveNumber(parameters, "high_freq_factor"));
  if (rope->high_freq_factor <= rope->low_freq_factor) {
    return absl::InvalidArgumentError(
        absl::StrFormat("high_freq_factor (%g) must exceed low_freq_factor (%g)",
                        rope->high_freq_factor, rope->low_freq_factor));
  }
  return absl::OkStatus();
}

absl::Status ParseYarn(const Json& parameters, RopeConfig* rope) {
  PTQ_ASSIGN_OR_RETURN(rope->beta_fast, Number(parameters, "beta_fast", 32.0));
  PTQ_ASSIGN_OR_RETURN(rope->beta_slow, Number(parameters, "beta_slow", 1.0));
  // transformers takes zero for "not given" here, and in the two mscales.
  if (rope->beta_fast == 0) rope->beta_fast = 32.0;
  if (rope->beta_slow == 0) rope->beta_slow = 1.0;
  if (!(rope->beta_slow > 0) || rope->beta_fast < rope->beta_slow) {
    return absl::InvalidArgumentError(
        absl::StrFormat("beta_fast (%g) must not be below beta_slow (%g), nor either negative",
                        rope->beta_fast, rope->beta_slow));
  }
  if (Find(parameters, "attention_factor") != nullptr) {
    PTQ_ASSIGN_OR_RETURN(rope->attention_factor, PositiveNumber(parameters, "attention_factor"));
  }
  PTQ_ASSIGN_OR_RETURN(rope->mscale, Number(parameters, "mscale", 0.0));
  PTQ_ASSIGN_OR_RETURN(rope->mscale_all_dim, Number(parameters, "mscale_all_dim", 0.0));
  PTQ_ASSIGN_OR_RETURN(rope->truncate, Flag(parameters, "truncate", true));
  return absl::OkStatus();
}

// `parameters` is rope_scaling (transformers 4) or rope_parameters (5).
absl::Status ParseRopeParameters(const Json& json, const Json& parameters,
                                 const ModelConfig& config, RopeConfig* rope) {
  PTQ_ASSIGN_OR_RETURN(rope->type, ParseRopeType(parameters));
  PTQ_ASSIGN_OR_RETURN(const double outer_theta, PositiveNumber(json, "rope_theta", 10000.0));
  PTQ_ASSIGN_OR_RETURN(rope->theta, PositiveNumber(parameters, "rope_theta", outer_theta));
  if (rope->theta <= 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("rope_theta is %g, but must exceed 1", rope->theta));
  }
  PTQ_ASSIGN_OR_RETURN(const double outer_share, Number(json, "partial_rotary_factor", 1.0));
  PTQ_ASSIGN_OR_RETURN(rope->partial_rotary_factor,
                       Number(parameters, "partial_rotary_factor", outer_share));
  if (rope->partial_rotary_factor != 1.0) {
    return absl::UnimplementedError(absl::StrFormat(
        "partial_rotary_factor %g is not supported for model_type %s (supported: 1)",
        rope->partial_rotary_factor, config.model_type));
  }
  if (rope->type == RopeConfig::Type::kDefault) return absl::OkStatus();

  // A value beside the parameters has priority in transformers.
  PTQ_ASSIGN_OR_RETURN(const int64_t inner_original,
                       Size(parameters, "original_max_position_embeddings", 0));
  PTQ_ASSIGN_OR_RETURN(rope->original_max_position_embeddings,
                       Size(json, "original_max_position_embeddings", inner_original));
  // yarn alone may leave the factor to the ratio of the two lengths, by an explicit null.
  if (rope->type == RopeConfig::Type::kYarn && parameters.contains("factor") &&
      Find(parameters, "factor") == nullptr) {
    const int64_t original = rope->original_max_position_embeddings;
    rope->factor = original == 0 ? 1.0
                                 : static_cast<double>(config.max_position_embeddings) /
                                       static_cast<double>(original);
  } else {
    PTQ_ASSIGN_OR_RETURN(rope->factor, PositiveNumber(parameters, "factor"));
  }
  switch (rope->type) {
    case RopeConfig::Type::kDynamic:
      // Its base is raised to head_dim / (head_dim - 2).
      if (config.head_dim <= 2) {
        return absl::InvalidArgumentError("rope_type dynamic needs a head_dim above 2");
      }
      return absl::OkStatus();
    case RopeConfig::Type::kLlama3:
      return ParseLlama3(parameters, rope);
    case RopeConfig::Type::kYarn:
      return ParseYarn(parameters, rope);
    default:
      return absl::OkStatus();
  }
}

absl::Status ParseRope(const Json& json, ModelConfig* config) {
  // Where both spellings are there, transformers takes the older one unless it is empty.
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const Json* parameters = Find(json, key);
    if (parameters == nullptr) continue;
    if (!parameters->is_object()) return WrongType(key, "an object");
    if (parameters->empty()) continue;
    return Annotate(ParseRopeParameters(json, *parameters, *config, &config->rope), key);
  }
  return ParseRopeParameters(json, Json::object(), *config, &config->rope);
}

absl::StatusOr<ModelConfig> Parse(std::string_view text, std::vector<std::string>* warnings) {
  PTQ_ASSIGN_OR_RETURN(const Json json, ParseJson(text));
  if (!json.is_object()) return absl::InvalidArgumentError("not a JSON object");
  ModelConfig config;
  PTQ_RETURN_IF_ERROR(ParseFamily(json, &config, warnings));
  PTQ_RETURN_IF_ERROR(RefuseQuantized(json));
  PTQ_RETURN_IF_ERROR(ParseSizes(json, &config));
  PTQ_RETURN_IF_ERROR(ParseOptions(json, &config));
  PTQ_RETURN_IF_ERROR(ParseDtype(json, &config));
  PTQ_RETURN_IF_ERROR(ParseEndOfText(json, &config, warnings));
  PTQ_RETURN_IF_ERROR(ParseRope(json, &config));
  return config;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json,
                                             std::vector<std::string>* warnings) {
  auto config = Parse(json, warnings);
  if (!config.ok()) return Annotate(config.status(), "config.json");
  return config;
}

}  // namespace ptq
