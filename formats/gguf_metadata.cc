#include "formats/gguf_metadata.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "common/status_macros.h"

namespace ptq {
namespace {

// llama.cpp's numbers for "most tensors are of this type".
uint32_t FileType(GgufType type) {
  switch (type) {
    case GgufType::kF32:
      return 0;
    case GgufType::kF16:
      return 1;
    case GgufType::kQ4_0:
      return 2;
    case GgufType::kQ4_1:
      return 3;
    case GgufType::kQ8_0:
      return 7;
    case GgufType::kQ5_0:
      return 8;
    case GgufType::kQ5_1:
      return 9;
    case GgufType::kQ2_K:
      return 10;
    case GgufType::kQ3_K:
      return 12;  // Q3_K_M: GGUF knows mixes alone
    case GgufType::kQ4_K:
      return 15;  // Q4_K_M
    case GgufType::kQ5_K:
      return 17;  // Q5_K_M
    case GgufType::kQ6_K:
      return 18;
    case GgufType::kBF16:
      return 32;
  }
  return 0;
}

// Keys "<architecture>.<name>".
class Keys {
 public:
  explicit Keys(const char* architecture) : prefix_(absl::StrCat(architecture, ".")) {}

  void Integer(const char* name, int64_t value) {
    metadata_.emplace_back(prefix_ + name, static_cast<uint32_t>(value));
  }
  void Real(const char* name, double value) {
    metadata_.emplace_back(prefix_ + name, static_cast<float>(value));
  }
  void Flag(const char* name, bool value) { metadata_.emplace_back(prefix_ + name, value); }
  void Word(const char* name, const std::string& value) {
    metadata_.emplace_back(prefix_ + name, value);
  }
  GgufMetadata Take() { return std::move(metadata_); }

 private:
  std::string prefix_;
  GgufMetadata metadata_;
};

absl::Status Refuse(const std::string& key, const std::string& why) {
  return absl::FailedPreconditionError(
      absl::StrCat("format gguf: config.json: ", key, ": ", why,
                   "; use another format, such as compressed-tensors"));
}

// The length for which longrope and YaRN models were trained first.
int64_t OriginalLength(const ModelConfig& config) {
  return config.rope.original_max_position_embeddings > 0
             ? config.rope.original_max_position_embeddings
             : config.max_position_embeddings;
}

absl::Status AddYarn(const ModelConfig& config, Keys& keys) {
  const RopeConfig& rope = config.rope;
  if (!rope.truncate) return Refuse("rope_parameters.truncate", "llama.cpp always truncates");
  if (rope.mscale != 0 || rope.mscale_all_dim != 0) {
    return Refuse("rope_parameters.mscale", "llama.cpp knows it in DeepSeek's models only");
  }
  keys.Word("rope.scaling.type", "yarn");
  keys.Real("rope.scaling.factor", rope.factor);
  keys.Integer("rope.scaling.original_context_length", OriginalLength(config));
  keys.Real("rope.scaling.yarn_beta_fast", rope.beta_fast);
  keys.Real("rope.scaling.yarn_beta_slow", rope.beta_slow);
  // llama.cpp multiplies by what transformers derives where config.json names no factor.
  if (rope.attention_factor != 0) {
    keys.Real("rope.scaling.attn_factor",
              rope.attention_factor / (0.1 * std::log(rope.factor) + 1.0));
  }
  return absl::OkStatus();
}

void AddLongRope(const ModelConfig& config, Keys& keys) {
  const auto original = static_cast<double>(OriginalLength(config));
  const double scale = static_cast<double>(config.max_position_embeddings) / original;
  const double derived = scale > 1 ? std::sqrt(1 + std::log(scale) / std::log(original)) : 1.0;
  keys.Integer("rope.scaling.original_context_length", OriginalLength(config));
  keys.Real("rope.scaling.attn_factor",
            config.rope.attention_factor != 0 ? config.rope.attention_factor : derived);
}

absl::Status AddRope(const ModelConfig& config, Keys& keys) {
  const RopeConfig& rope = config.rope;
  keys.Integer("rope.dimension_count", config.RotaryDim());
  keys.Real("rope.freq_base", rope.theta);
  switch (rope.type) {
    case RopeConfig::Type::kDefault:
    case RopeConfig::Type::kLlama3:  // a tensor says it: GgufRopeFactors
      break;
    case RopeConfig::Type::kLinear:
      keys.Word("rope.scaling.type", "linear");
      keys.Real("rope.scaling.factor", rope.factor);
      break;
    case RopeConfig::Type::kYarn:
      return AddYarn(config, keys);
    case RopeConfig::Type::kLongRope:
      AddLongRope(config, keys);
      break;
    case RopeConfig::Type::kDynamic:
      return Refuse("rope_parameters.rope_type",
                    "llama.cpp has no dynamic scaling, which depends on a text's length");
  }
  if (config.local_rope.has_value()) {
    if (config.local_rope->type != RopeConfig::Type::kDefault) {
      return Refuse("rope_parameters.sliding_attention",
                    "llama.cpp scales no frequencies in blocks with a window");
    }
    keys.Real("rope.freq_base_swa", config.local_rope->theta);
  }
  return absl::OkStatus();
}

// Of blocks of which all but each `period`-th have the window: 0 if all have it, 1 if none.
// kFailedPrecondition for another order, which llama.cpp can't be told.
absl::StatusOr<int64_t> WindowPeriod(const ModelConfig& config) {
  const auto& sliding = config.attention.sliding;
  const auto fits = [&sliding](size_t period) {
    for (size_t i = 0; i < sliding.size(); ++i) {
      if (sliding[i] != (i % period + 1 < period)) return false;
    }
    return true;
  };
  const auto first_full = std::find(sliding.begin(), sliding.end(), false);
  if (first_full == sliding.end()) return 0;
  const auto period = first_full - sliding.begin() + 1;
  if (fits(static_cast<size_t>(period))) return period;
  return Refuse("layer_types", "its windows come in no regular order");
}

// What bounds the context, and windows where the architecture has them. Elsewhere llama.cpp would
// look at all tokens: within the window that is the same, so the context ends there.
absl::Status AddContext(const GgufFamily& family, const ModelConfig& config, Keys& keys) {
  const AttentionOptions& attention = config.attention;
  int64_t context = config.max_position_embeddings;
  bool slides = false;
  for (int64_t block = 0; block < config.num_hidden_layers; ++block) {
    slides = slides || config.WindowOf(block) > 0;
  }
  if (family.has_windows) {
    PTQ_ASSIGN_OR_RETURN(const int64_t period, WindowPeriod(config));
    keys.Integer("attention.sliding_window", attention.sliding_window);
    keys.Integer("attention.sliding_window_pattern", period);
  } else if (slides) {
    context = std::min(context, attention.sliding_window);
    PTQ_LOG(Warning) << "gguf: llama.cpp has no sliding window for " << family.model_type
                     << ": the context is given as " << context << " tokens, within which it is "
                     << "the same";
  }
  keys.Integer("context_length", context);
  return absl::OkStatus();
}

// llama.cpp derives the scale of attention's logits; this is how, by architecture.
double AssumedAttentionScale(const GgufFamily& family, const ModelConfig& config) {
  const std::string architecture = family.architecture;
  const bool is_27b = (architecture == "gemma2" && config.num_hidden_layers == 46) ||
                      (architecture == "gemma3" && config.num_hidden_layers == 62);
  const int64_t divisor =
      is_27b ? config.hidden_size / config.num_attention_heads : config.head_dim;
  return 1 / std::sqrt(static_cast<double>(divisor));
}

absl::Status AddAttention(const GgufFamily& family, const ModelConfig& config, Keys& keys) {
  const AttentionOptions& attention = config.attention;
  keys.Integer("attention.head_count", config.num_attention_heads);
  keys.Integer("attention.head_count_kv", config.num_key_value_heads);
  keys.Integer("attention.key_length", config.head_dim);
  keys.Integer("attention.value_length", config.head_dim);
  if (config.norm == NormKind::kLayer) {
    keys.Real("attention.layer_norm_epsilon", config.norm_eps);
  } else {
    keys.Real("attention.layer_norm_rms_epsilon", config.norm_eps);
  }
  const double assumed = AssumedAttentionScale(family, config);
  const double scale =
      attention.scale != 0 ? attention.scale : 1 / std::sqrt(static_cast<double>(config.head_dim));
  if (family.has_multipliers) {
    keys.Real("attention.scale", scale);
  } else if (std::fabs(scale / assumed - 1) > 1e-6) {
    return Refuse(
        "the scale of attention's logits",
        absl::StrCat("llama.cpp takes ", assumed, " for granted, this model has ", scale));
  }
  if (attention.scale_by_inverse_layer) {
    return Refuse("scale_attn_by_inverse_layer_idx", "llama.cpp does not know it");
  }
  const bool has_caps = attention.soft_cap != 0 && config.logits_soft_cap != 0;
  if (family.has_soft_caps && has_caps) {
    keys.Real("attn_logit_softcapping", attention.soft_cap);
    keys.Real("final_logit_softcapping", config.logits_soft_cap);
  } else if (family.has_soft_caps || attention.soft_cap != 0 || config.logits_soft_cap != 0) {
    return Refuse("attn_logit_softcapping, final_logit_softcapping",
                  absl::StrCat("llama.cpp's ", family.architecture,
                               family.has_soft_caps ? " needs both" : " has none"));
  }
  return absl::OkStatus();
}

absl::Status AddMultipliers(const GgufFamily& family, const ModelConfig& config, Keys& keys) {
  if (family.has_multipliers) {
    keys.Real("embedding_scale", config.embedding_multiplier);
    keys.Real("residual_scale", config.residual_multiplier);
    keys.Real("logit_scale", config.logits_divisor);
    return absl::OkStatus();
  }
  // Gemma's multiplier, the root of the hidden size, is the architecture's own.
  const double own = config.norm == NormKind::kRmsPlusOne
                         ? std::sqrt(static_cast<double>(config.hidden_size))
                         : 1.0;
  if (std::fabs(config.embedding_multiplier / own - 1) > 1e-6 || config.residual_multiplier != 1 ||
      config.logits_divisor != 1) {
    return Refuse("a multiplier", absl::StrCat("llama.cpp's ", family.architecture, " has none"));
  }
  return absl::OkStatus();
}

absl::Status AddExperts(const GgufFamily& family, const ModelConfig& config, Keys& keys) {
  const ExpertOptions& experts = config.experts;
  const RouterConfig& router = experts.router;
  if (!family.normalizes_experts.has_value()) return absl::OkStatus();
  if (std::find(experts.routed.begin(), experts.routed.end(), false) != experts.routed.end()) {
    return Refuse("mlp_only_layers, decoder_sparse_step",
                  absl::StrCat("llama.cpp's ", family.architecture, " has experts in every block"));
  }
  if (router.normalize != *family.normalizes_experts) {
    return Refuse("norm_topk_prob",
                  absl::StrCat("llama.cpp's ", family.architecture, " has it the other way round"));
  }
  if (router.scores != RouterConfig::Scores::kSoftmax || router.groups != 1 ||
      router.scaling != 1) {
    return Refuse("the router", absl::StrCat("llama.cpp's ", family.architecture, " has another"));
  }
  keys.Integer("expert_count", router.experts);
  keys.Integer("expert_used_count", router.experts_per_token);
  keys.Integer("expert_feed_forward_length", experts.intermediate_size);
  if (experts.shared_intermediate_size > 0) {
    keys.Integer("expert_shared_feed_forward_length", experts.shared_intermediate_size);
  }
  return absl::OkStatus();
}

absl::Status CheckRest(const GgufFamily& family, const ModelConfig& config) {
  // llama.cpp approximates GELU by tanh wherever it stands.
  const Activation activation =
      config.activation == Activation::kGelu ? Activation::kGeluTanh : config.activation;
  if (activation != family.activation) {
    return Refuse("hidden_act", absl::StrCat("llama.cpp's ", family.architecture, " has another"));
  }
  if (family.needs_biases && !(config.attention_bias && config.mlp_bias)) {
    return Refuse("attention_bias, use_bias",
                  absl::StrCat("llama.cpp's ", family.architecture, " needs biases"));
  }
  if (config.position_offset.value_or(0) != 0) {
    return Refuse("position embeddings", "llama.cpp's begin at row 0");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GgufMetadata> GgufModelMetadata(const GgufFamily& family, const ModelConfig& config,
                                               GgufType type) {
  PTQ_RETURN_IF_ERROR(CheckRest(family, config));
  Keys keys(family.architecture);
  keys.Integer("vocab_size", config.vocab_size);
  PTQ_RETURN_IF_ERROR(AddContext(family, config, keys));
  keys.Integer("embedding_length", config.hidden_size);
  keys.Integer("block_count", config.num_hidden_layers);
  keys.Integer("feed_forward_length", config.intermediate_size);
  PTQ_RETURN_IF_ERROR(AddAttention(family, config, keys));
  PTQ_RETURN_IF_ERROR(AddMultipliers(family, config, keys));
  PTQ_RETURN_IF_ERROR(AddExperts(family, config, keys));
  if (config.attention.rotary) PTQ_RETURN_IF_ERROR(AddRope(config, keys));
  if (std::string(family.architecture) == "gptneox") {
    keys.Flag("use_parallel_residual", config.parallel_residual);
  }

  GgufMetadata metadata = {
      {"general.architecture", std::string(family.architecture)},
      {"general.type", std::string("model")},
      {"general.name", config.model_type},
      {"general.alignment", uint32_t{32}},
      {"general.quantization_version", uint32_t{2}},
      {"general.file_type", FileType(type)},
  };
  for (auto& entry : keys.Take()) metadata.push_back(std::move(entry));
  return metadata;
}

std::vector<std::pair<std::string, std::vector<float>>> GgufRopeFactors(const ModelConfig& config) {
  const RopeConfig& rope = config.rope;
  if (rope.type == RopeConfig::Type::kLongRope) {
    return {{"rope_factors_long.weight", {rope.long_factor.begin(), rope.long_factor.end()}},
            {"rope_factors_short.weight", {rope.short_factor.begin(), rope.short_factor.end()}}};
  }
  if (rope.type != RopeConfig::Type::kLlama3) return {};
  const auto original = static_cast<double>(OriginalLength(config));
  const double longest = original / rope.low_freq_factor;
  const double shortest = original / rope.high_freq_factor;
  const int64_t rotary = config.RotaryDim();
  std::vector<float> factors;
  for (int64_t i = 0; i < rotary; i += 2) {
    const double frequency =
        std::pow(rope.theta, -static_cast<double>(i) / static_cast<double>(rotary));
    const double wavelength = 2 * std::numbers::pi / frequency;
    double factor = 1;
    if (wavelength > longest) {
      factor = rope.factor;
    } else if (wavelength >= shortest) {
      const double smooth = (original / wavelength - rope.low_freq_factor) /
                            (rope.high_freq_factor - rope.low_freq_factor);
      factor = 1 / ((1 - smooth) / rope.factor + smooth);
    }
    factors.push_back(static_cast<float>(factor));
  }
  return {{"rope_freqs.weight", std::move(factors)}};
}

}  // namespace ptq
