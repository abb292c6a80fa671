// How a linear layer's weight lies in memory and is cut into pieces of work, for the tuning loops
// on the host and on a CUDA device. C++17, no torch.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_WEIGHT_LAYOUT_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_WEIGHT_LAYOUT_H_

#include <cstdint>

#include "algorithms/auto_round/rounding_math.h"

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
struct WeightLayout {
  static constexpr int64_t kUnitElements = 4096;

  int64_t groups = 0;
  int64_t group_size = 0;
  int bits = 4;
  bool symmetric = true;
  WeightStorage storage = WeightStorage::kFloat32;

  PTQ_HOST_DEVICE int64_t units_per_group() const {
    return (group_size + kUnitElements - 1) / kUnitElements;
  }
  PTQ_HOST_DEVICE int64_t units() const { return groups * units_per_group(); }
};

// Values that share a scale in an operand of an FP8 product, along its contraction.
constexpr int64_t kFp8Block = 128;

// A weight decoded only as far as an FP8 product takes it: value = code · scale. Groups of
// kFp8Block, codes that e4m3 holds exactly.
struct Fp8Codes {
  uint8_t* codes = nullptr;  // [elements] e4m3: q - z; none: decoded in full
  float* scale = nullptr;    // of group g in row r: scale[g · scale_stride + r]
  int64_t groups_per_row = 0;
  int64_t scale_stride = 0;
};

struct WeightUnit {
  int64_t group;
  int64_t begin;  // of the flattened weight
  int64_t length;
};
PTQ_HOST_DEVICE WeightUnit UnitAt(const WeightLayout& layout, int64_t index) {
  const int64_t per_group = layout.units_per_group();
  const int64_t group = index / per_group;
  const int64_t first = (index % per_group) * WeightLayout::kUnitElements;
  const int64_t left = layout.group_size - first;
  return WeightUnit{group, group * layout.group_size + first,
                    left < WeightLayout::kUnitElements ? left : WeightLayout::kUnitElements};
}

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_WEIGHT_LAYOUT_H_
