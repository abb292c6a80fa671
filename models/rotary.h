// Rotary position embeddings: the frequencies of every supported scaling, and their application.
#ifndef PTQ_MODELS_ROTARY_H_
#define PTQ_MODELS_ROTARY_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "formats/headers/model_config.h"
#include "models/decoder_block.h"

namespace ptq {

// What a rotary table is made of.
struct RotaryFrequencies {
  at::Tensor inverse;             // [head_dim / 2] float32, CPU: radians a position
  double attention_factor = 1.0;  // multiplies cos and sin (yarn)
};

// For a sequence of `length` positions (only `dynamic` depends on it: it stretches the base once
// the sequence exceeds max_position_embeddings). Float32 with the operations of transformers in
// their order, because an error of one ulp grows with the position.
RotaryFrequencies ComputeRotaryFrequencies(const ModelConfig& config, int64_t length);

// cos and sin [length, head_dim] for positions 0..length-1; float32 inside, rounded to `dtype`.
RotaryTable ComputeRotaryTable(const ModelConfig& config, int64_t length, at::ScalarType dtype,
                               at::Device device);

// states [B, T, heads, head_dim], each head rotated by its position: the first half of a head and
// its second half are the two coordinates. Differentiable with respect to `states`.
at::Tensor ApplyRotary(const at::Tensor& states, const RotaryTable& rotary);

}  // namespace ptq

#endif  // PTQ_MODELS_ROTARY_H_
