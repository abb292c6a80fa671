// Rows of 16-bit values in packs of eight: what kernels over hidden states share.
#ifndef PTQ_ALGORITHMS_CUDA_PACKS_CUH_
#define PTQ_ALGORITHMS_CUDA_PACKS_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "algorithms/cuda/block_spans.h"
#include "algorithms/cuda/hidden_dtype.h"

namespace ptq {

constexpr int kWarp = 32;
constexpr int kPack = static_cast<int>(kHiddenPack);
constexpr int kThreads = 256;
// A row is held in registers: so many packs a thread at most.
constexpr int kMaxPacks = static_cast<int>(kWidestRow / kPack / kThreads);

inline __device__ float2 Widen(__nv_bfloat162 pair) { return __bfloat1622float2(pair); }
inline __device__ float2 Widen(__half2 pair) { return __half22float2(pair); }

template <typename T>
struct PairOf;
template <>
struct PairOf<__nv_bfloat16> {
  using Type = __nv_bfloat162;
  static __device__ Type Narrow(float x, float y) { return __floats2bfloat162_rn(x, y); }
};
template <>
struct PairOf<__half> {
  using Type = __half2;
  // Saturating: an infinite gradient would spoil the whole step.
  static __device__ Type Narrow(float x, float y) {
    return __floats2half2_rn(fminf(fmaxf(x, -65504.0f), 65504.0f),
                             fminf(fmaxf(y, -65504.0f), 65504.0f));
  }
};

struct Values {
  float lane[kPack];
};

template <typename T>
__device__ Values Load(const T* source) {
  using Pair = typename PairOf<T>::Type;
  const uint4 raw = *reinterpret_cast<const uint4*>(source);
  const Pair* pairs = reinterpret_cast<const Pair*>(&raw);
  Values values;
#pragma unroll
  for (int i = 0; i < kPack / 2; ++i) {
    const float2 wide = Widen(pairs[i]);
    values.lane[2 * i] = wide.x;
    values.lane[2 * i + 1] = wide.y;
  }
  return values;
}

template <typename T>
__device__ uint4 Narrow(const Values& values) {
  uint4 raw;
  auto* pairs = reinterpret_cast<typename PairOf<T>::Type*>(&raw);
#pragma unroll
  for (int i = 0; i < kPack / 2; ++i) {
    pairs[i] = PairOf<T>::Narrow(values.lane[2 * i], values.lane[2 * i + 1]);
  }
  return raw;
}
template <typename T>
__device__ void Store(T* target, const Values& values) {
  *reinterpret_cast<uint4*>(target) = Narrow<T>(values);
}

// As a store and a load would.
template <typename T>
__device__ float Rounded(float x) {
  return Widen(PairOf<T>::Narrow(x, 0.0f)).x;
}

// silu(gate) · up, silu rounded as a tensor of its own would be.
template <typename T>
__device__ Values Gated(const Values& gate, const Values& up) {
  Values hidden;
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    const float g = gate.lane[i];
    hidden.lane[i] = Rounded<T>(__fdividef(g, 1.0f + __expf(-g))) * up.lane[i];
  }
  return hidden;
}
// Its gradients, from that of the result.
inline __device__ Values GateGradient(const Values& gate, const Values& up,
                                      const Values& gradient) {
  Values result;
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    const float g = gate.lane[i];
    const float sigmoid = __fdividef(1.0f, 1.0f + __expf(-g));
    result.lane[i] = gradient.lane[i] * up.lane[i] * (sigmoid + g * sigmoid * (1.0f - sigmoid));
  }
  return result;
}
inline __device__ Values UpGradient(const Values& gate, const Values& gradient) {
  Values result;
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    const float g = gate.lane[i];
    result.lane[i] = gradient.lane[i] * __fdividef(g, 1.0f + __expf(-g));
  }
  return result;
}

// Sum over a block of whole warps, on all its threads; the same in every run. Once a kernel for
// each type.
template <typename T>
__device__ T BlockSum(T x) {
  __shared__ T scratch[kWarp];
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
  }
  if (threadIdx.x % kWarp == 0) {
    scratch[threadIdx.x / kWarp] = x;
  }
  __syncthreads();
  T sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) {
    sum += scratch[warp];
  }
  return sum;
}

inline unsigned BlocksFor(int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

// Calls launch(T{}) with the 16-bit type.
template <typename Launch>
cudaError_t WithType(HiddenDtype dtype, const Launch& launch) {
  switch (dtype) {
    case HiddenDtype::kBFloat16:
      launch(__nv_bfloat16{});
      return cudaGetLastError();
    case HiddenDtype::kHalf:
      launch(__half{});
      return cudaGetLastError();
    case HiddenDtype::kFloat32:
      break;
  }
  return cudaErrorInvalidValue;
}

// Calls launch(threads, integral_constant of packs a thread) for rows of `width`.
template <int kPacks>
struct Packs {
  static constexpr int value = kPacks;
};
template <typename Launch>
cudaError_t WithPacks(int64_t width, const Launch& launch) {
  const int64_t packs = width / kPack;
  if (width % kPack != 0 || packs > int64_t{kThreads} * kMaxPacks) return cudaErrorInvalidValue;
  const int64_t warps = (packs + kWarp - 1) / kWarp;
  const int threads = static_cast<int>(warps * kWarp < kThreads ? warps * kWarp : kThreads);
  const int64_t each = (packs + threads - 1) / threads;
  if (each <= 1) {
    launch(threads, Packs<1>{});
  } else if (each <= 2) {
    launch(threads, Packs<2>{});
  } else if (each <= 4) {
    launch(threads, Packs<4>{});
  } else {
    launch(threads, Packs<kMaxPacks>{});
  }
  return cudaSuccess;
}

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_CUDA_PACKS_CUH_
