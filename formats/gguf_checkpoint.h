// A GGUF file as a quantized checkpoint: what `convert` reads.
#ifndef PTQ_FORMATS_GGUF_CHECKPOINT_H_
#define PTQ_FORMATS_GGUF_CHECKPOINT_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "formats/quantized_checkpoint.h"

namespace ptq {

// The file `path`, of ours or of llama.cpp's own tools. `config_folder` has the original
// config.json and tokenizer, or neither; what it lacks is made of the metadata, in a temporary
// folder that lives as long as the checkpoint.
//
// Weights of the blocks' linear layers in Q8_0, Q4_0, Q5_0, Q4_1 and Q5_1 are records of groups of
// 32; llama.cpp's order of rows is undone. Other quantized tensors (embedding, head) are their
// values in float32, with a warning. What is always float32 in such a file (vectors, routers) comes
// in the model's dtype where that holds it exactly.
//
// kInvalidArgument, kUnimplemented or kFailedPrecondition naming file, key or tensor: a damaged
// file, an architecture that config.json can't be made for, a config.json of another model, tensors
// that are missing or of a type that no record holds (K-quants).
absl::StatusOr<std::unique_ptr<QuantizedCheckpoint>> OpenGguf(const std::string& path,
                                                              const std::string& config_folder);

}  // namespace ptq

#endif  // PTQ_FORMATS_GGUF_CHECKPOINT_H_
