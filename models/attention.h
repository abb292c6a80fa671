// The attention of a decoder block.
#ifndef PTQ_MODELS_ATTENTION_H_
#define PTQ_MODELS_ATTENTION_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "formats/headers/model_config.h"
#include "models/block_weights.h"
#include "models/decoder_block.h"

namespace ptq {

// Thread-compatible; without state.
class Attention {
 public:
  virtual ~Attention() = default;

  // Normalized states [B, T, D] -> what attention adds to the hidden states, [B, T, D]; causal,
  // without padding. Linears go through `apply` in the order of the table.
  virtual at::Tensor Forward(const at::Tensor& input, const RotaryTable& rotary,
                             const LinearFunction& apply) const = 0;
  // Fills in what GatedBlockParts says of attention; false if that cannot be said of this one, for
  // sequences of `length` tokens.
  virtual bool Describe(int64_t length, GatedBlockParts* parts) const = 0;
};

// By the options of `config` and the block's tensors. kInvalidArgument for a missing one.
absl::StatusOr<std::unique_ptr<Attention>> MakeAttention(const ModelConfig& config, int64_t block,
                                                         const BlockWeights& weights);

}  // namespace ptq

#endif  // PTQ_MODELS_ATTENTION_H_
