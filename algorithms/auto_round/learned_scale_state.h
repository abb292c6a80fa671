// What the fused loops of the learned-scale recipe (docs/tuning.md) read and write for one linear
// layer: raw spans, on the host or on a CUDA device. C++17, no torch.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_LEARNED_SCALE_STATE_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_LEARNED_SCALE_STATE_H_

#include <cstdint>

#include "algorithms/auto_round/weight_layout.h"

namespace ptq {

// The spans of LearnedScaleParameters, elements as WeightLayout says. Moments are bfloat16 bits.
struct LearnedScaleState : WeightLayout {
  Fp8Codes fp8;                        // forward's output instead of fake_quantized, on CUDA alone
  void* fake_quantized = nullptr;      // [elements]: forward's output
  const void* gradient = nullptr;      // [elements]: dL / d fake_quantized
  float* position = nullptr;           // [elements]: U = W / s0 + V, in units of a code
  uint16_t* first_moment = nullptr;    // [elements]: of U's gradient
  uint16_t* second_moment = nullptr;   // [elements]
  const float* start_scale = nullptr;  // [groups]: s0, float16 values
  const float* zero_point = nullptr;   // [groups], unsigned; 0 when symmetric
  float* factor = nullptr;             // [groups]: t; the scale is float16(s0 t)
  float* factor_first_moment = nullptr;   // [groups]
  float* factor_second_moment = nullptr;  // [groups]
  float* factor_gradient = nullptr;       // [units]: scratch of the backward pass
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_LEARNED_SCALE_STATE_H_
