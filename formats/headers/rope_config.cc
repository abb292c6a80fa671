#include "formats/headers/rope_config.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_format.h"
#include "common/json.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/headers/config_json.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

using Type = RopeConfig::Type;

absl::StatusOr<Type> ReadType(const Json& parameters, const RopeKeys& keys,
                              const ModelConfig& config) {
  PTQ_ASSIGN_OR_RETURN(const std::string old_spelling, ReadText(parameters, "type", "default"));
  PTQ_ASSIGN_OR_RETURN(std::string name, ReadText(parameters, "rope_type", old_spelling));
  for (const char* other : keys.names_of_longrope) {
    if (name == other) name = "longrope";
  }
  if (name == "default") return Type::kDefault;
  constexpr struct {
    const char* name;
    Type type;
  } kScalings[] = {{"linear", Type::kLinear},
                   {"dynamic", Type::kDynamic},
                   {"llama3", Type::kLlama3},
                   {"yarn", Type::kYarn},
                   {"longrope", Type::kLongRope}};
  std::string supported = "default";
  for (const auto& scaling : kScalings) {
    const bool taken =
        keys.scalings.empty() ||
        std::find(keys.scalings.begin(), keys.scalings.end(), scaling.type) != keys.scalings.end();
    if (!taken) continue;
    if (name == scaling.name) return scaling.type;
    supported += std::string(", ") + scaling.name;
  }
  return absl::UnimplementedError(
      absl::StrFormat("rope_type %s is not supported for model_type %s (supported: %s)",
                      Quote(name), config.model_type, supported));
}

absl::Status ReadLlama3(const Json& parameters, RopeConfig* rope) {
  PTQ_ASSIGN_OR_RETURN(rope->low_freq_factor, ReadPositiveNumber(parameters, "low_freq_factor"));
  PTQ_ASSIGN_OR_RETURN(rope->high_freq_factor, ReadPositiveNumber(parameters, "high_freq_factor"));
  if (rope->high_freq_factor <= rope->low_freq_factor) {
    return absl::InvalidArgumentError(
        absl::StrFormat("high_freq_factor (%g) must exceed low_freq_factor (%g)",
                        rope->high_freq_factor, rope->low_freq_factor));
  }
  return absl::OkStatus();
}

absl::Status ReadYarn(const Json& parameters, RopeConfig* rope) {
  PTQ_ASSIGN_OR_RETURN(rope->beta_fast, ReadNumber(parameters, "beta_fast", 32.0));
  PTQ_ASSIGN_OR_RETURN(rope->beta_slow, ReadNumber(parameters, "beta_slow", 1.0));
  // transformers takes zero for "not given" here, and in the two mscales.
  if (rope->beta_fast == 0) rope->beta_fast = 32.0;
  if (rope->beta_slow == 0) rope->beta_slow = 1.0;
  if (!(rope->beta_slow > 0) || rope->beta_fast < rope->beta_slow) {
    return absl::InvalidArgumentError(
        absl::StrFormat("beta_fast (%g) must not be below beta_slow (%g), nor either negative",
                        rope->beta_fast, rope->beta_slow));
  }
  PTQ_ASSIGN_OR_RETURN(rope->mscale, ReadNumber(parameters, "mscale", 0.0));
  PTQ_ASSIGN_OR_RETURN(rope->mscale_all_dim, ReadNumber(parameters, "mscale_all_dim", 0.0));
  PTQ_ASSIGN_OR_RETURN(rope->truncate, ReadFlag(parameters, "truncate", true));
  return absl::OkStatus();
}

absl::Status ReadLongRope(const Json& parameters, const ModelConfig& config, RopeConfig* rope) {
  const auto rotated =
      static_cast<int64_t>(static_cast<double>(config.head_dim) * rope->partial_rotary_factor);
  const int64_t frequencies = (rotated + 1) / 2;
  PTQ_ASSIGN_OR_RETURN(rope->short_factor,
                       ReadPositiveNumbers(parameters, "short_factor", frequencies));
  PTQ_ASSIGN_OR_RETURN(rope->long_factor,
                       ReadPositiveNumbers(parameters, "long_factor", frequencies));
  return absl::OkStatus();
}

absl::Status ReadTheta(const Json& json, const Json& parameters, const RopeKeys& keys,
                       RopeConfig* rope) {
  PTQ_ASSIGN_OR_RETURN(const double outer,
                       ReadPositiveNumber(json, keys.theta, keys.default_theta));
  PTQ_ASSIGN_OR_RETURN(rope->theta, ReadPositiveNumber(parameters, "rope_theta", outer));
  if (rope->theta <= 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("rope_theta is %g, but must exceed 1", rope->theta));
  }
  return absl::OkStatus();
}

absl::Status ReadPartialRotaryFactor(const Json& json, const Json& parameters, const RopeKeys& keys,
                                     const ModelConfig& config, RopeConfig* rope) {
  const bool whole = keys.partial_rotary_factor == nullptr;
  PTQ_ASSIGN_OR_RETURN(
      const double outer,
      ReadNumber(json, whole ? "partial_rotary_factor" : keys.partial_rotary_factor,
                 keys.default_partial_rotary_factor));
  PTQ_ASSIGN_OR_RETURN(rope->partial_rotary_factor,
                       ReadNumber(parameters, "partial_rotary_factor", outer));
  if (whole && rope->partial_rotary_factor != 1.0) {
    return absl::UnimplementedError(absl::StrFormat(
        "partial_rotary_factor %g is not supported for model_type %s (supported: 1)",
        rope->partial_rotary_factor, config.model_type));
  }
  const double rotated = static_cast<double>(config.head_dim) * rope->partial_rotary_factor;
  if (!(rotated >= 1) || rope->partial_rotary_factor > 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("partial_rotary_factor %g rotates nothing, or more than a head of %d",
                        rope->partial_rotary_factor, config.head_dim));
  }
  return absl::OkStatus();
}

absl::StatusOr<RopeConfig> Read(const Json& json, const Json& parameters, const RopeKeys& keys,
                                const ModelConfig& config) {
  for (const char* key : {"full_attention", "sliding_attention"}) {
    if (FindKey(parameters, key) == nullptr) continue;
    return absl::UnimplementedError(
        absl::StrFormat("%s: parameters by kind of layer are not supported for model_type %s", key,
                        config.model_type));
  }
  RopeConfig rope;
  PTQ_ASSIGN_OR_RETURN(rope.type, ReadType(parameters, keys, config));
  PTQ_RETURN_IF_ERROR(ReadTheta(json, parameters, keys, &rope));
  PTQ_RETURN_IF_ERROR(ReadPartialRotaryFactor(json, parameters, keys, config, &rope));
  if (rope.type == Type::kDefault) return rope;

  // A value beside the parameters has priority in transformers.
  PTQ_ASSIGN_OR_RETURN(const int64_t inner_original,
                       ReadSize(parameters, "original_max_position_embeddings", 0));
  PTQ_ASSIGN_OR_RETURN(
      rope.original_max_position_embeddings,
      ReadSize(json, "original_max_position_embeddings",
               keys.default_original_length > 0 ? keys.default_original_length : inner_original));
  // longrope, and yarn by an explicit null, may leave the factor to the ratio of the two lengths.
  const bool derived =
      FindKey(parameters, "factor") == nullptr &&
      (rope.type == Type::kLongRope || (rope.type == Type::kYarn && parameters.contains("factor")));
  if (derived) {
    const int64_t original = rope.original_max_position_embeddings;
    rope.factor = original == 0 ? 1.0
                                : static_cast<double>(config.max_position_embeddings) /
                                      static_cast<double>(original);
  } else {
    PTQ_ASSIGN_OR_RETURN(rope.factor, ReadPositiveNumber(parameters, "factor"));
  }
  if (rope.type == Type::kYarn || rope.type == Type::kLongRope) {
    if (FindKey(parameters, "attention_factor") != nullptr) {
      PTQ_ASSIGN_OR_RETURN(rope.attention_factor,
                           ReadPositiveNumber(parameters, "attention_factor"));
    }
  }
  switch (rope.type) {
    case Type::kDynamic:
      // Its base is raised to d / (d - 2), d being what is rotated of a head.
      if (static_cast<double>(config.head_dim) * rope.partial_rotary_factor < 3) {
        return absl::InvalidArgumentError("rope_type dynamic needs a head_dim above 2");
      }
      break;
    case Type::kLlama3:
      PTQ_RETURN_IF_ERROR(ReadLlama3(parameters, &rope));
      break;
    case Type::kYarn:
      PTQ_RETURN_IF_ERROR(ReadYarn(parameters, &rope));
      break;
    case Type::kLongRope:
      PTQ_RETURN_IF_ERROR(ReadLongRope(parameters, config, &rope));
      break;
    default:
      break;
  }
  return rope;
}

}  // namespace

absl::StatusOr<RopeConfig> ReadRopeParameters(const Json& json, const Json& parameters,
                                              const char* name, const RopeKeys& keys,
                                              const ModelConfig& config) {
  if (!parameters.is_object()) return WrongType(name, "an object");
  auto rope = Read(json, parameters, keys, config);
  if (!rope.ok() && !parameters.empty()) return Annotate(rope.status(), name);
  return rope;
}

absl::StatusOr<RopeConfig> ReadRope(const Json& json, const RopeKeys& keys,
                                    const ModelConfig& config) {
  // Where both spellings are there, transformers takes the older one unless it is empty.
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const Json* parameters = FindKey(json, key);
    if (parameters == nullptr || (parameters->is_object() && parameters->empty())) continue;
    return ReadRopeParameters(json, *parameters, key, keys, config);
  }
  return ReadRopeParameters(json, Json::object(), "rope_parameters", keys, config);
}

}  // namespace ptq
