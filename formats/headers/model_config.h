// config.json of a decoder-only model, checked. transformers 4's and 5's spellings of the rope
// keys.
#ifndef PTQ_FORMATS_HEADERS_MODEL_CONFIG_H_
#define PTQ_FORMATS_HEADERS_MODEL_CONFIG_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/headers/dtype.h"

namespace ptq {

// Rotary embedding parameters; the names and meanings of transformers' modeling_rope_utils.
struct RopeConfig {
  enum class Type { kDefault, kLinear, kDynamic, kLlama3, kYarn };
  Type type = Type::kDefault;
  double theta = 10000.0;
  double factor = 1.0;                           // linear, dynamic, llama3, yarn
  double low_freq_factor = 1.0;                  // llama3
  double high_freq_factor = 4.0;                 // llama3
  int64_t original_max_position_embeddings = 0;  // 0: max_position_embeddings
  double beta_fast = 32.0;                       // yarn
  double beta_slow = 1.0;                        // yarn
  double attention_factor = 0.0;                 // yarn; 0: derived from factor
  double mscale = 0.0;                           // yarn
  double mscale_all_dim = 0.0;                   // yarn
  bool truncate = true;                          // yarn
  double partial_rotary_factor = 1.0;
};

struct ModelConfig {
  std::string model_type;    // "llama"
  std::string architecture;  // "LlamaForCausalLM"
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  bool attention_bias = false;
  bool mlp_bias = false;
  bool tie_word_embeddings = false;
  std::string hidden_act = "silu";
  RopeConfig rope;
  std::vector<int64_t> eos_token_ids;  // empty: config.json names none
  DType dtype = DType::kF32;  // of the checkpoint, as config.json says ("dtype", "torch_dtype")
  bool has_dtype = false;
};

// kInvalidArgument naming the key: not an object, a size that is missing, not positive or above
// 2^31, heads that don't divide, a quantization_config (already quantized), an unknown rope type's
// missing parameter. kUnimplemented: unknown model_type (with auto_map: "remote code is never
// executed"), unknown rope_type or hidden_act. `warnings` gets sentences, e.g. for an ignored
// auto_map.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json,
                                             std::vector<std::string>* warnings);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_MODEL_CONFIG_H_
