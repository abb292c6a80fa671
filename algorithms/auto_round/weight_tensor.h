// What the tunable weights share: a weight's layout, checks of its companions, and loops over its
// groups and units in ATen's threads.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_WEIGHT_TENSOR_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_WEIGHT_TENSOR_H_

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>

#include "algorithms/auto_round/tunable_weight.h"
#include "algorithms/auto_round/weight_layout.h"
#include "common/quantization_scheme.h"

namespace ptq {

// `weight` [N, K] float32, bfloat16 or float16; `stored_dtype` the checkpoint's; `scheme` fits it.
// Throws c10::Error for other dtypes.
WeightLayout LayoutOf(const at::Tensor& weight, at::ScalarType stored_dtype,
                      const QuantizationScheme& scheme);

// Throws c10::Error unless `tensor` is contiguous and has these sizes and the options' dtype.
void CheckLikeWeight(const at::Tensor& tensor, at::IntArrayRef sizes,
                     const at::TensorOptions& options);

// Points a state's outputs to `output`, which fits a weight of these sizes and options; codes only
// on CUDA. Throws c10::Error otherwise.
void PointTo(const DecodedWeight& output, at::IntArrayRef sizes, const at::TensorOptions& options,
             void*& fake_quantized, Fp8Codes& fp8);

inline constexpr int64_t kElementsPerTask = 32768;

// body(begin, end) in parallel over groups and over units, in tasks of about kElementsPerTask
// elements.
template <typename Body>
void ForGroups(const WeightLayout& layout, const Body& body) {
  at::parallel_for(0, layout.groups, std::max<int64_t>(1, kElementsPerTask / layout.group_size),
                   body);
}
template <typename Body>
void ForUnits(const WeightLayout& layout, const Body& body) {
  const int64_t elements = std::min(WeightLayout::kUnitElements, layout.group_size);
  at::parallel_for(0, layout.units(), std::max<int64_t>(1, kElementsPerTask / elements), body);
}

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_WEIGHT_TENSOR_H_
