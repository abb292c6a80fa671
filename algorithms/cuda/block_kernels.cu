// What a decoder block computes between its matrix products: norms, rotary embeddings, gated
// activations, with their gradients (block_spans.h). Each is one pass over memory.
#include <cuda_runtime.h>

#include <cstdint>

#include "algorithms/cuda/block_spans.h"
#include "algorithms/cuda/kernels.h"
#include "algorithms/cuda/packs.cuh"

namespace ptq {
namespace {

__global__ void __launch_bounds__(kThreads) GatherKernel(GatherSpans spans) {
  const int64_t packs = spans.bytes / sizeof(uint4);
  const int64_t sample = spans.order[*spans.step * spans.batch + spans.first + blockIdx.y];
  const auto* source = static_cast<const uint4*>(spans.inputs) + sample * packs;
  auto* target = static_cast<uint4*>(spans.output) + blockIdx.y * packs;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < packs;
       i += gridDim.x * int64_t{kThreads}) {
    target[i] = source[i];
  }
}

// One block a row, which it holds in registers.
template <typename T, int kPacks>
__global__ void __launch_bounds__(kThreads) RmsNormKernel(RmsNormSpans spans) {
  const int64_t start = blockIdx.x * spans.width;
  const int packs = static_cast<int>(spans.width / kPack);
  const T* input = static_cast<const T*>(spans.input) + start;
  const T* branch = static_cast<const T*>(spans.branch);
  const T* weight = static_cast<const T*>(spans.weight);
  T* output = static_cast<T*>(spans.output) + start;
  Values row[kPacks];
  float squares = 0.0f;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int pack = p * blockDim.x + threadIdx.x;
    if (pack >= packs) break;
    row[p] = Load(input + pack * kPack);
    if (branch != nullptr) {
      const Values added = Load(branch + start + pack * kPack);
      for (int i = 0; i < kPack; ++i) {
        row[p].lane[i] = Rounded<T>(row[p].lane[i] + added.lane[i]);
      }
      Store(static_cast<T*>(spans.sum) + start + pack * kPack, row[p]);
    }
    for (int i = 0; i < kPack; ++i) {
      squares += row[p].lane[i] * row[p].lane[i];
    }
  }
  const float inverse = rsqrtf(BlockSum(squares) / static_cast<float>(spans.width) + spans.epsilon);
  if (threadIdx.x == 0 && spans.inverse_rms != nullptr) {
    spans.inverse_rms[blockIdx.x] = inverse;
  }
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int pack = p * blockDim.x + threadIdx.x;
    if (pack >= packs) break;
    const Values scales = Load(weight + pack * kPack);
    for (int i = 0; i < kPack; ++i) {
      row[p].lane[i] = Rounded<T>(row[p].lane[i] * inverse) * scales.lane[i];
    }
    Store(output + pack * kPack, row[p]);
  }
}

template <typename T, int kPacks>
__global__ void __launch_bounds__(kThreads) RmsNormBackwardKernel(RmsNormBackwardSpans spans) {
  const int64_t start = blockIdx.x * spans.width;
  const int packs = static_cast<int>(spans.width / kPack);
  const T* gradient = static_cast<const T*>(spans.gradient) + start;
  const T* residual = static_cast<const T*>(spans.residual) + start;
  const T* sum = static_cast<const T*>(spans.sum) + start;
  const T* weight = static_cast<const T*>(spans.weight);
  T* output = static_cast<T*>(spans.output) + start;
  const float inverse = spans.inverse_rms[blockIdx.x];
  Values normalized[kPacks];
  Values weighted[kPacks];  // gradient of the normalized row
  float dot = 0.0f;
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int pack = p * blockDim.x + threadIdx.x;
    if (pack >= packs) break;
    normalized[p] = Load(sum + pack * kPack);
    weighted[p] = Load(gradient + pack * kPack);
    const Values scales = Load(weight + pack * kPack);
    for (int i = 0; i < kPack; ++i) {
      normalized[p].lane[i] *= inverse;
      weighted[p].lane[i] *= scales.lane[i];
      dot += normalized[p].lane[i] * weighted[p].lane[i];
    }
  }
  const float mean = BlockSum(dot) / static_cast<float>(spans.width);
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int pack = p * blockDim.x + threadIdx.x;
    if (pack >= packs) break;
    Values result = Load(residual + pack * kPack);
    for (int i = 0; i < kPack; ++i) {
      result.lane[i] += inverse * (weighted[p].lane[i] - normalized[p].lane[i] * mean);
    }
    Store(output + pack * kPack, result);
  }
}

// One thread a pack of the first half of a head and its partner in the second half.
template <typename T>
__global__ void __launch_bounds__(kThreads) RotaryKernel(RotarySpans spans, int64_t threads) {
  const int64_t index = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (index >= threads) return;
  const int64_t half = spans.head_dim / 2;
  const int64_t packs = half / kPack;
  const int64_t column = index % packs * kPack;
  const int64_t head = index / packs % spans.heads;
  const int64_t token = index / (packs * spans.heads);
  const int64_t angles = token % spans.length * spans.head_dim + column;
  T* values =
      static_cast<T*>(spans.rows) + token * spans.row_stride + head * spans.head_dim + column;
  Values first = Load(values);
  Values second = Load(values + half);
  const Values cos = Load(static_cast<const T*>(spans.cos) + angles);
  const Values sin = Load(static_cast<const T*>(spans.sin) + angles);
  for (int i = 0; i < kPack; ++i) {
    const float s = spans.inverse ? -sin.lane[i] : sin.lane[i];
    const float x = first.lane[i];
    const float y = second.lane[i];
    first.lane[i] = x * cos.lane[i] - y * s;
    second.lane[i] = y * cos.lane[i] + x * s;
  }
  Store(values, first);
  Store(values + half, second);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) GatedKernel(GatedSpans spans, int64_t threads) {
  const int64_t index = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (index >= threads) return;
  const int64_t packs = spans.width / kPack;
  const int64_t row = index / packs;
  const int64_t column = index % packs * kPack;
  const int64_t at = row * spans.stride + column;
  const Values hidden = Gated<T>(Load(static_cast<const T*>(spans.gate) + at),
                                 Load(static_cast<const T*>(spans.up) + at));
  Store(static_cast<T*>(spans.hidden) + row * spans.width + column, hidden);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) GatedBackwardKernel(GatedSpans spans, int64_t threads) {
  const int64_t index = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (index >= threads) return;
  const int64_t packs = spans.width / kPack;
  const int64_t row = index / packs;
  const int64_t column = index % packs * kPack;
  const int64_t at = row * spans.stride + column;
  const Values gate = Load(static_cast<const T*>(spans.gate) + at);
  const Values up = Load(static_cast<const T*>(spans.up) + at);
  const Values gradient =
      Load(static_cast<const T*>(spans.hidden_gradient) + row * spans.width + column);
  Store(static_cast<T*>(spans.gate_gradient) + at, GateGradient(gate, up, gradient));
  Store(static_cast<T*>(spans.up_gradient) + at, UpGradient(gate, gradient));
}

}  // namespace

int LaunchGather(const GatherSpans& spans, void* stream) {
  if (spans.bytes % sizeof(uint4) != 0) return cudaErrorInvalidValue;
  const int64_t blocks =
      (spans.bytes / static_cast<int64_t>(sizeof(uint4)) + kThreads - 1) / kThreads;
  const dim3 grid(static_cast<unsigned>(blocks < 4096 ? blocks : 4096),
                  static_cast<unsigned>(spans.count));
  GatherKernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(spans);
  return cudaGetLastError();
}

int LaunchRmsNorm(const RmsNormSpans& spans, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  cudaError_t fits = cudaSuccess;
  const cudaError_t error = WithType(spans.dtype, [&](auto type) {
    fits = WithPacks(spans.width, [&](int threads, auto packs) {
      RmsNormKernel<decltype(type), decltype(packs)::value>
          <<<static_cast<unsigned>(spans.rows), threads, 0, cuda_stream>>>(spans);
    });
  });
  return fits != cudaSuccess ? fits : error;
}

int LaunchRmsNormBackward(const RmsNormBackwardSpans& spans, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  cudaError_t fits = cudaSuccess;
  const cudaError_t error = WithType(spans.dtype, [&](auto type) {
    fits = WithPacks(spans.width, [&](int threads, auto packs) {
      RmsNormBackwardKernel<decltype(type), decltype(packs)::value>
          <<<static_cast<unsigned>(spans.rows), threads, 0, cuda_stream>>>(spans);
    });
  });
  return fits != cudaSuccess ? fits : error;
}

int LaunchRotary(const RotarySpans& spans, void* stream) {
  if (spans.head_dim % (2 * kPack) != 0 || spans.row_stride % kPack != 0) {
    return cudaErrorInvalidValue;
  }
  const int64_t threads = spans.batch * spans.length * spans.heads * (spans.head_dim / 2 / kPack);
  return WithType(spans.dtype, [&](auto type) {
    RotaryKernel<decltype(type)>
        <<<BlocksFor(threads), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(spans, threads);
  });
}

int LaunchGated(const GatedSpans& spans, void* stream) {
  if (spans.width % kPack != 0 || spans.stride % kPack != 0) return cudaErrorInvalidValue;
  const int64_t threads = spans.rows * (spans.width / kPack);
  return WithType(spans.dtype, [&](auto type) {
    GatedKernel<decltype(type)>
        <<<BlocksFor(threads), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(spans, threads);
  });
}

int LaunchGatedBackward(const GatedSpans& spans, void* stream) {
  if (spans.width % kPack != 0 || spans.stride % kPack != 0) return cudaErrorInvalidValue;
  const int64_t threads = spans.rows * (spans.width / kPack);
  return WithType(spans.dtype, [&](auto type) {
    GatedBackwardKernel<decltype(type)>
        <<<BlocksFor(threads), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(spans, threads);
  });
}

}  // namespace ptq
