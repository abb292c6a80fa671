// What observers of blocks compute (observer_spans.h).
#include <cuda_runtime.h>

#include <cstdint>

#include "algorithms/cuda/kernels.h"
#include "algorithms/cuda/observer_spans.h"
#include "algorithms/cuda/packs.cuh"

namespace ptq {
namespace {

// One block a row.
template <typename T>
__global__ void __launch_bounds__(kThreads) RowErrorsKernel(RowErrorSpans spans) {
  const int64_t start = blockIdx.x * spans.width;
  const T* values = static_cast<const T*>(spans.values) + start;
  const T* targets = static_cast<const T*>(spans.targets) + start;
  float difference = 0.0f;
  float square = 0.0f;
  for (int64_t column = threadIdx.x * int64_t{kPack}; column < spans.width;
       column += int64_t{kThreads} * kPack) {
    const Values value = Load(values + column);
    const Values target = Load(targets + column);
    for (int i = 0; i < kPack; ++i) {
      const float d = value.lane[i] - target.lane[i];
      difference += d * d;
      square += target.lane[i] * target.lane[i];
    }
  }
  difference = BlockSum(difference);
  __syncthreads();  // BlockSum's scratch is used again
  square = BlockSum(square);
  if (threadIdx.x == 0) spans.errors[blockIdx.x] = difference / fmaxf(square, 1e-30f);
}

// A warp's lanes take neighbouring packs of columns, its block's warps the rows of a slice in turn.
template <typename T>
__global__ void __launch_bounds__(kThreads) ColumnSquaresKernel(ColumnSquareSpans spans) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ float partial[kWarps][kWarp][kPack + 1];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int64_t column = (blockIdx.x * int64_t{kWarp} + lane) * kPack;
  const int64_t begin = blockIdx.y * kRowsPerSlice;
  const int64_t left = spans.rows - begin;
  const int64_t rows = left < kRowsPerSlice ? left : kRowsPerSlice;
  Values squares = {};
  if (column < spans.width) {
    const T* values = static_cast<const T*>(spans.values) + begin * spans.width + column;
#pragma unroll 4
    for (int64_t row = warp; row < rows; row += kWarps) {
      const Values value = Load(values + row * spans.width);
      for (int i = 0; i < kPack; ++i) squares.lane[i] += value.lane[i] * value.lane[i];
    }
  }
  for (int i = 0; i < kPack; ++i) partial[warp][lane][i] = squares.lane[i];
  __syncthreads();
  // One thread a column of the block's.
  const int pack = threadIdx.x / kPack;
  const int element = threadIdx.x % kPack;
  const int64_t own = (blockIdx.x * int64_t{kWarp} + pack) * kPack + element;
  if (own >= spans.width) return;
  float sum = 0.0f;
  for (int w = 0; w < kWarps; ++w) sum += partial[w][pack][element];
  spans.sums[blockIdx.y * spans.width + own] = sum;
}

// Murmur3's finalizer.
__device__ uint32_t Mixed(uint32_t x) {
  x ^= x >> 16;
  x *= 0x85ebca6bu;
  x ^= x >> 13;
  x *= 0xc2b2ae35u;
  return x ^ (x >> 16);
}

// The greatest logit with noise so far, of equal ones the first.
struct Label {
  float score;
  int64_t column;
  __device__ void Take(float other, int64_t its) {
    if (other > score || (other == score && its < column)) {
      score = other;
      column = its;
    }
  }
};

constexpr int kRowThreads = 1024;

// One block a row, which it reads twice.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) SampledGradientKernel(SampledGradientSpans spans) {
  constexpr int kWarps = kRowThreads / kWarp;
  __shared__ float maxima[kWarps];
  __shared__ float sums[kWarps];
  __shared__ Label labels[kWarps];
  const float* logits = spans.logits + blockIdx.x * spans.width;
  const auto key = static_cast<uint32_t>(spans.row_keys[blockIdx.x]);
  float maximum = -INFINITY;
  float sum = 0.0f;  // of exp(logit - maximum)
  Label label = {-INFINITY, INT64_MAX};
  for (int64_t column = threadIdx.x; column < spans.width; column += kRowThreads) {
    const float logit = logits[column];
    if (logit > maximum) {
      sum *= expf(maximum - logit);
      maximum = logit;
    }
    sum += expf(logit - maximum);
    const uint32_t bits = Mixed(key ^ (static_cast<uint32_t>(column) * 0x3c6ef372u));
    const float uniform = (static_cast<float>(bits & 0x7FFFFFu) + 0.5f) / 8388608.0f;
    label.Take(logit - logf(-logf(uniform)), column);
  }
  const auto add = [&maximum, &sum](float other_maximum, float other_sum) {
    const float greater = fmaxf(maximum, other_maximum);
    if (greater == -INFINITY) return;
    sum = sum * expf(maximum - greater) + other_sum * expf(other_maximum - greater);
    maximum = greater;
  };
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    add(__shfl_down_sync(0xFFFFFFFFu, maximum, offset), __shfl_down_sync(0xFFFFFFFFu, sum, offset));
    const float score = __shfl_down_sync(0xFFFFFFFFu, label.score, offset);
    label.Take(score, __shfl_down_sync(0xFFFFFFFFu, label.column, offset));
  }
  if (threadIdx.x % kWarp == 0) {
    maxima[threadIdx.x / kWarp] = maximum;
    sums[threadIdx.x / kWarp] = sum;
    labels[threadIdx.x / kWarp] = label;
  }
  __syncthreads();
  maximum = maxima[0];
  sum = sums[0];
  label = labels[0];
  for (int warp = 1; warp < kWarps; ++warp) {
    add(maxima[warp], sums[warp]);
    label.Take(labels[warp].score, labels[warp].column);
  }
  T* gradient = static_cast<T*>(spans.gradient) + blockIdx.x * spans.width;
  for (int64_t column = threadIdx.x; column < spans.width; column += kRowThreads) {
    const float probability = expf(logits[column] - maximum) / sum;
    gradient[column] = static_cast<T>(column == label.column ? probability - 1.0f : probability);
  }
}

}  // namespace

int LaunchRowErrors(const RowErrorSpans& spans, void* stream) {
  if (spans.width % kPack != 0) return cudaErrorInvalidValue;
  return WithType(spans.dtype, [&](auto type) {
    RowErrorsKernel<decltype(type)>
        <<<static_cast<unsigned>(spans.rows), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            spans);
  });
}

int LaunchColumnSquares(const ColumnSquareSpans& spans, void* stream) {
  if (spans.width % kPack != 0) return cudaErrorInvalidValue;
  const int64_t columns = kWarp * kPack;
  const dim3 grid(static_cast<unsigned>((spans.width + columns - 1) / columns),
                  static_cast<unsigned>(spans.slices()));
  return WithType(spans.dtype, [&](auto type) {
    ColumnSquaresKernel<decltype(type)>
        <<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(spans);
  });
}

int LaunchSampledGradient(const SampledGradientSpans& spans, void* stream) {
  return WithType(spans.dtype, [&](auto type) {
    SampledGradientKernel<decltype(type)>
        <<<static_cast<unsigned>(spans.rows), kRowThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            spans);
  });
}

}  // namespace ptq
