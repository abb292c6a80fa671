// config.json of a decoder-only model, checked, and put into the terms that all families share.
// transformers 4's and 5's spellings of the rope keys.
#ifndef PTQ_FORMATS_HEADERS_MODEL_CONFIG_H_
#define PTQ_FORMATS_HEADERS_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/headers/dtype.h"
#include "formats/headers/expert_config.h"

namespace ptq {

// Rotary embedding parameters; the names and meanings of transformers' modeling_rope_utils.
struct RopeConfig {
  enum class Type { kDefault, kLinear, kDynamic, kLlama3, kYarn, kLongRope };
  Type type = Type::kDefault;
  double theta = 10000.0;
  double factor = 1.0;                           // of all but the default
  double low_freq_factor = 1.0;                  // llama3
  double high_freq_factor = 4.0;                 // llama3
  int64_t original_max_position_embeddings = 0;  // 0: max_position_embeddings
  double beta_fast = 32.0;                       // yarn
  double beta_slow = 1.0;                        // yarn
  double attention_factor = 0.0;                 // yarn, longrope; 0: derived from factor
  double mscale = 0.0;                           // yarn
  double mscale_all_dim = 0.0;                   // yarn
  bool truncate = true;                          // yarn
  std::vector<double> short_factor;              // longrope, one for each frequency
  std::vector<double> long_factor;
  // Of a head's coordinates so many are rotated, the first ones.
  double partial_rotary_factor = 1.0;
};

// How a norm of hidden states computes.
enum class NormKind {
  kRms,         // rounded to the compute dtype, then times the weight
  kRmsWide,     // times the weight in float32, then rounded
  kRmsPlusOne,  // times 1 + the weight in float32, then rounded
  kLayer,       // mean and variance, weight and bias
};

enum class Activation { kSilu, kGelu, kGeluTanh, kRelu };

// What attention computes beyond what the tensor table shows: which projections are fused, and
// whether queries and keys have norms, is seen there.
struct AttentionOptions {
  double scale = 0;                     // of the logits; 0: 1 / sqrt(head_dim)
  bool scale_by_inverse_layer = false;  // and by 1 / (block + 1)
  double soft_cap = 0;                  // logits become cap * tanh(logits / cap); 0: they don't
  bool rotary = true;
  // Rows of a fused projection: query, key and value of each head side by side, instead of all
  // queries, then all keys, then all values.
  bool fused_by_head = false;
  // A token sees so many, itself included, in the blocks of `sliding`; 0: all before it.
  int64_t sliding_window = 0;
  std::vector<bool> sliding;  // by block; empty: none
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
  NormKind norm = NormKind::kRms;
  double norm_eps = 1e-6;
  bool attention_bias = false;
  bool mlp_bias = false;
  bool tie_word_embeddings = false;
  Activation activation = Activation::kSilu;
  AttentionOptions attention;
  LatentAttentionConfig latent_attention;
  ExpertOptions experts;
  RopeConfig rope;
  std::optional<RopeConfig> local_rope;  // of blocks with a sliding window, where they have another
  // Attention and MLP read the same hidden states and are added together.
  bool parallel_residual = false;
  double residual_multiplier = 1.0;  // of what attention and MLP add
  double embedding_multiplier = 1.0;
  bool round_embedding_multiplier = false;  // to the compute dtype before it is applied
  // Learned positions are added to the embedding: position p has row p + this one of its table.
  std::optional<int64_t> position_offset;
  double logits_divisor = 1.0;
  double logits_soft_cap = 0;          // as AttentionOptions::soft_cap, behind the division
  std::vector<int64_t> eos_token_ids;  // empty: config.json names none
  DType dtype = DType::kF32;  // of the checkpoint, as config.json says ("dtype", "torch_dtype")
  bool has_dtype = false;

  bool IsSliding(int64_t block) const;
  // Whether `block` has experts in the place of one MLP.
  bool IsRouted(int64_t block) const;
  // The window of `block`; 0: it sees all tokens before.
  int64_t WindowOf(int64_t block) const;
  // Coordinates of a head that a rotary embedding turns: even, 0 without one.
  int64_t RotaryDim() const;
};

// kInvalidArgument naming the key: not an object, a size that is missing, not positive or above
// 2^31, heads that don't divide, a quantization_config (already quantized), an unknown rope type's
// missing parameter. kUnimplemented: unknown model_type, naming the supported ones (with auto_map:
// "remote code is never executed"), unknown rope_type or activation, an option of the family that
// is not computed here. `warnings` gets sentences, e.g. for an ignored auto_map.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json,
                                             std::vector<std::string>* warnings);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_MODEL_CONFIG_H_
