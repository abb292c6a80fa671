// How a model family is declared: data, and one function that reads what its config.json alone has.
// One file of families/ each, and a line in families/registry.cc.
#ifndef PTQ_FORMATS_HEADERS_FAMILY_H_
#define PTQ_FORMATS_HEADERS_FAMILY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/json_fwd.h"
#include "formats/headers/model_config.h"
#include "formats/headers/rope_config.h"
#include "formats/headers/tensor_table.h"

namespace ptq {

// A size that a row is made of.
using Extent = int64_t (*)(const ModelConfig&);

// When a row's tensors exist. `block` is -1 outside of the blocks.
struct Condition {
  bool (*holds)(const ModelConfig&, int64_t block);
  const char* why;  // "attention_bias is true": what makes it hold, for messages
};

// One tensor, or one for each expert of a block.
struct Row {
  std::string module;  // within its block, or of the whole model; "{i}" is the expert
  const char* parameter;
  TensorRole role;
  TensorPart part;
  std::vector<Extent> shape;
  Condition present;
  bool transposed = false;
  // How many experts there are, of which each has this row, in the place of "{i}"; nullptr: not one
  // of experts. Neighbouring rows with the same count come expert by expert.
  Extent experts = nullptr;
};

// Names of the keys that families call differently, and what absent keys mean: the defaults of the
// family's configuration class in transformers.
struct ConfigKeys {
  const char* hidden_size = "hidden_size";
  const char* intermediate_size = "intermediate_size";
  const char* num_hidden_layers = "num_hidden_layers";
  const char* num_attention_heads = "num_attention_heads";
  const char* num_key_value_heads = "num_key_value_heads";  // nullptr: as many as queries
  const char* head_dim = "head_dim";                        // nullptr: hidden size / heads
  const char* max_position_embeddings = "max_position_embeddings";
  const char* norm_eps = "rms_norm_eps";  // nullptr: always the default
  const char* activation = "hidden_act";
  int64_t default_intermediate_factor = 0;  // times the hidden size; 0: the key must be there
  int64_t default_num_key_value_heads = 0;  // 0: as many as queries
  int64_t default_head_dim = 0;             // 0: hidden size / heads
  int64_t default_max_position_embeddings = 2048;
  double default_norm_eps = 1e-6;
  const char* default_activation = "silu";
  bool default_tie_word_embeddings = false;
};

struct Family {
  const char* model_type;
  const char* architecture;
  const char* block_prefix;  // followed by the block's number and '.'
  std::vector<Row> before_blocks;
  std::vector<Row> block;
  std::vector<Row> after_blocks;
  std::vector<const char*> ignored_suffixes;  // buffers that old checkpoints carry
  ConfigKeys keys;
  RopeKeys rope;
  // Reads what only this family has, after the sizes and before the rope keys, and sets the options
  // that it always has. Errors name the key.
  absl::Status (*read_options)(const Json& json, ModelConfig* config,
                               std::vector<std::string>* warnings);
  // Instead of ReadRope with `rope`, where the keys are laid out otherwise.
  absl::Status (*read_rope)(const Json& json, ModelConfig* config) = nullptr;
};

// All of them, in the order of messages.
const std::vector<Family>& Families();
// nullptr if there is none.
const Family* FindFamily(const std::string& model_type);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_FAMILY_H_
