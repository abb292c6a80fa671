// What the fused loops of one linear layer read and write: raw spans, on the host or on a CUDA
// device. C++17, no torch.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_ROUNDING_STATE_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_ROUNDING_STATE_H_

#include <cstdint>

#include "algorithms/auto_round/weight_layout.h"

namespace ptq {

// The spans of RoundingParameters, elements as WeightLayout says.
struct RoundingState : WeightLayout {
  const void* weight = nullptr;       // [elements]
  Fp8Codes fp8;                       // forward's output instead of fake_quantized, on CUDA alone
  void* fake_quantized = nullptr;     // [elements]: forward's output
  const void* gradient = nullptr;     // [elements]: dL / d fake_quantized
  float* value = nullptr;             // [elements]: V
  float* alpha = nullptr;             // [groups]
  float* beta = nullptr;              // [groups]
  const float* minimum = nullptr;     // [groups], <= 0
  const float* maximum = nullptr;     // [groups], >= 0
  float* scale = nullptr;             // [groups]: of the last forward pass
  float* zero_point = nullptr;        // [groups]: likewise, unsigned; 0 when symmetric
  float* scale_gradient = nullptr;    // [units]: scratch of the backward pass
  float* clamped_gradient = nullptr;  // [units]
  int8_t* best_codes = nullptr;       // [elements], signed storage
  float* best_scale = nullptr;        // [groups]
  float* best_zero_point = nullptr;   // [groups], unsigned
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_ROUNDING_STATE_H_
