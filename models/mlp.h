// The MLP of a decoder block.
#ifndef PTQ_MODELS_MLP_H_
#define PTQ_MODELS_MLP_H_

#include <ATen/core/Tensor.h>

#include <memory>

#include "absl/status/statusor.h"
#include "formats/headers/model_config.h"
#include "models/block_weights.h"
#include "models/decoder_block.h"

namespace ptq {

// Thread-compatible; without state.
class Mlp {
 public:
  virtual ~Mlp() = default;

  // Normalized states [B, T, D] -> what the MLP adds to the hidden states, [B, T, D]. Linears go
  // through `apply` in the order of the table.
  virtual at::Tensor Forward(const at::Tensor& input, const LinearFunction& apply) const = 0;
  // Fills in what GatedBlockParts says of the MLP; false if that cannot be said of this one.
  virtual bool Describe(GatedBlockParts* parts) const = 0;
};

// By the options of `config` and the block's tensors. kInvalidArgument for a missing one.
absl::StatusOr<std::unique_ptr<Mlp>> MakeMlp(const ModelConfig& config,
                                             const BlockWeights& weights);

}  // namespace ptq

#endif  // PTQ_MODELS_MLP_H_
