// What the fused loops of one linear layer read and write: raw spans, on the host or on a CUDA
// device. C++17, no torch.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_ROUNDING_STATE_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_ROUNDING_STATE_H_

#include <cstdint>

namespace ptq {

// Dtype of the weight, the fake-quantized weight and the gradient; and how decoded values are
// rounded before they are stored in it (a bfloat16 checkpoint that computes in float32 keeps
// bfloat16 values).
enum class WeightStorage {
  kFloat32,
  kFloat32RoundedToBFloat16,
  kFloat32RoundedToHalf,
  kBFloat16,
  kHalf,
};

// A weight as `groups` runs of `group_size` elements that share a scale; elements = groups *
// group_size. Work is cut into units of at most kUnitElements within one group, so that reductions
// add in the same order whatever the number of threads.
struct RoundingState {
  static constexpr int64_t kUnitElements = 4096;

  const void* weight = nullptr;       // [elements]
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
  int64_t groups = 0;
  int64_t group_size = 0;
  int bits = 4;
  bool symmetric = true;
  WeightStorage storage = WeightStorage::kFloat32;

  int64_t units_per_group() const { return (group_size + kUnitElements - 1) / kUnitElements; }
  int64_t units() const { return groups * units_per_group(); }
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_ROUNDING_STATE_H_
