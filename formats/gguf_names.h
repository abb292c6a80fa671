// What llama.cpp calls the tensors of a Hugging Face model, and how it wants their rows
// (llama.cpp's src/llama-arch.cpp and conversion/*.py).
#ifndef PTQ_FORMATS_GGUF_NAMES_H_
#define PTQ_FORMATS_GGUF_NAMES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/headers/model_config.h"
#include "formats/headers/tensor_table.h"

namespace ptq {

// One of llama.cpp's architectures, and what it takes for granted.
struct GgufFamily {
  const char* model_type = "";
  const char* architecture = "";
  Activation activation = Activation::kSilu;
  // It rotates neighbouring values of a head, transformers its two halves: the rows of the query
  // and key projections change places.
  bool pairs_rotary = false;
  bool takes_biases = false;  // of linear layers
  bool needs_biases = false;
  bool needs_head = false;  // even where it is the embedding
  // It has keys for: a window in some of the blocks; caps of logits; Granite's multipliers.
  bool has_windows = false;
  bool has_soft_caps = false;
  bool has_multipliers = false;
  // The weights of a token's experts are divided by their sum; nothing where it has no experts.
  std::optional<bool> normalizes_experts = std::nullopt;
};

// kUnimplemented naming the families that llama.cpp has, for those that it lacks (OPT).
absl::StatusOr<GgufFamily> GgufFamilyOf(const ModelConfig& config);

// Where a tensor of the checkpoint goes.
struct GgufPlace {
  std::string name;            // "blk.0.attn_q.weight"
  int64_t expert = -1;         // its place in a stack of experts' weights
  std::vector<int64_t> shape;  // of the tensor, or of an expert's part of it
  // Rows (values of a bias) in the order of the GGUF file; empty: as they are.
  std::vector<int64_t> rows;
  bool add_one = false;     // transformers multiplies by 1 + weight, llama.cpp by weight
  bool always_f32 = false;  // llama.cpp computes with nothing else here
};

// kUnimplemented naming the tensor if llama.cpp has no place for it.
absl::StatusOr<GgufPlace> GgufPlaceOf(const GgufFamily& family, const ModelConfig& config,
                                      const TableTensor& tensor);

// The rows of a tensor in the order of the file, also where that is the checkpoint's.
std::vector<int64_t> RowsOf(const GgufPlace& place);

}  // namespace ptq

#endif  // PTQ_FORMATS_GGUF_NAMES_H_
