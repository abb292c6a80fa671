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
  at::Tensor inverse;             // [rotary_dim / 2] float32, CPU: radians a position
  double attention_factor = 1.0;  // multiplies cos and sin (yarn, longrope)
};

// Of `rope`, one of those of `config`, for a sequence of `length` positions (which counts in two
// scalings: `dynamic` stretches the base once the sequence exceeds max_position_embeddings, and
// `longrope` has other factors beyond original_max_position_embeddings). Float32 with the
// operations of transformers in their order, because an error of one ulp grows with the position.
RotaryFrequencies ComputeRotaryFrequencies(const RopeConfig& rope, const ModelConfig& config,
                                           int64_t length);

// cos and sin [length, rotary_dim] for positions 0..length-1; float32 inside, rounded to `dtype`.
RotaryTable ComputeRotaryTable(const RopeConfig& rope, const ModelConfig& config, int64_t length,
                               at::ScalarType dtype, at::Device device);

// states [B, T, heads, head_dim], each head's first rotary_dim coordinates rotated by its position:
// their first half and their second half are the two coordinates of the plane. Differentiable with
// respect to `states`.
at::Tensor ApplyRotary(const at::Tensor& states, const RotaryTable& rotary);

// The same where the two coordinates lie side by side: the result has all first ones and then all
// second ones, as transformers' DeepSeek-V3 does. Scores don't change by a reordering that queries
// and keys share. Computes in the table's dtype, which may be wider than that of the states
// (DeepSeek-V2 rotates in float32), and returns the states'.
at::Tensor ApplyInterleavedRotary(const at::Tensor& states, const RotaryTable& rotary);

// yarn's factor of cos and sin for a scaling by `factor`: 0.1 · mscale · ln(factor) + 1.
double YarnMagnitude(double factor, double mscale);

}  // namespace ptq

#endif  // PTQ_MODELS_ROTARY_H_
