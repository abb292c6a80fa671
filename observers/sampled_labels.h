// Labels sampled from a model's own distribution, for the Fisher pass.
#ifndef PTQ_OBSERVERS_SAMPLED_LABELS_H_
#define PTQ_OBSERVERS_SAMPLED_LABELS_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace ptq {

// One label a row, drawn from softmax(logits) [n, V] float32: the largest of logit + Gumbel noise,
// the noise a function of (seed, first_row + row, column) alone, so that labels depend neither on
// the device nor on how a text is cut into rows. Returns [n] int64.
at::Tensor SampleLabels(const at::Tensor& logits, uint64_t seed, int64_t first_row);

// softmax(logits) minus 1 at the sampled label: d CE / d logits, [n, V] in `dtype`. On CUDA in 16
// bits by one kernel, whose logarithms may differ from the host's in the last bit.
at::Tensor SampledGradient(const at::Tensor& logits, uint64_t seed, int64_t first_row,
                           at::ScalarType dtype);

}  // namespace ptq

#endif  // PTQ_OBSERVERS_SAMPLED_LABELS_H_
