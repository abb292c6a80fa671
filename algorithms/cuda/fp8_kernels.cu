// Rounding to FP8 in tiles of 128 x 128 (fp8_spans.h): one pass reads or computes a tile and writes
// it row by row and transposed, each with its scales.
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "algorithms/cuda/fp8_spans.h"
#include "algorithms/cuda/kernels.h"
#include "algorithms/cuda/packs.cuh"

namespace ptq {
namespace {

constexpr int kTile = static_cast<int>(kFp8Block);
constexpr int kPacksPerRow = kTile / kPack;  // threads over a row of the tile
constexpr int kRowsPerThread = 4;
constexpr int kTileThreads = kPacksPerRow * (kTile / kRowsPerThread);
constexpr int kTileWarps = kTileThreads / kWarp;

constexpr float kLargest = 448.0f;  // of e4m3

// Sources whose blocks take the tiles in their order.
struct InOrder {
  static __device__ int64_t TileColumn(int64_t block) { return block; }
};

template <typename T>
struct ValuesSource : InOrder {
  const T* values;
  int64_t columns;
  __device__ explicit ValuesSource(const Fp8TileSpans& spans)
      : values(static_cast<const T*>(spans.values)), columns(spans.columns) {}
  __device__ Values At(int64_t row, int64_t column) const {
    return Load(values + row * columns + column);
  }
};

struct CodesSource : InOrder {
  Fp8Codes weight;
  int64_t columns;
  __device__ explicit CodesSource(const Fp8TileSpans& spans)
      : weight(spans.weight), columns(spans.columns) {}
  __device__ Values At(int64_t row, int64_t column) const {
    const uint2 codes = *reinterpret_cast<const uint2*>(weight.codes + row * columns + column);
    const auto* pairs = reinterpret_cast<const __nv_fp8x2_storage_t*>(&codes);
    const float scale = weight.scale[column / kTile * weight.scale_stride + row];
    Values values;
#pragma unroll
    for (int i = 0; i < kPack / 2; ++i) {
      const float2 pair = __half22float2(__nv_cvt_fp8x2_to_halfraw2(pairs[i], __NV_E4M3));
      values.lane[2 * i] = pair.x * scale;
      values.lane[2 * i + 1] = pair.y * scale;
    }
    return values;
  }
};

template <typename T>
struct GatedSource : InOrder {
  const T* gate_up;
  int64_t width;
  __device__ explicit GatedSource(const Fp8TileSpans& spans)
      : gate_up(static_cast<const T*>(spans.gate_up)), width(spans.columns) {}
  __device__ Values At(int64_t row, int64_t column) const {
    const T* source = gate_up + row * 2 * width + column;
    return Gated<T>(Load(source), Load(source + width));
  }
};

template <typename T>
struct GatedBackwardSource {
  const T* gate_up;
  const T* hidden_gradient;
  int64_t width;
  __device__ explicit GatedBackwardSource(const Fp8TileSpans& spans)
      : gate_up(static_cast<const T*>(spans.gate_up)),
        hidden_gradient(static_cast<const T*>(spans.hidden_gradient)),
        width(spans.columns / 2) {}
  // Neighbouring blocks take the gate's tile and the up's, which read the same values.
  __device__ int64_t TileColumn(int64_t block) const {
    return block % 2 * (width / kTile) + block / 2;
  }
  __device__ Values At(int64_t row, int64_t column) const {
    const bool is_up = column >= width;
    const int64_t at = is_up ? column - width : column;
    const T* source = gate_up + row * 2 * width + at;
    const Values gradient = Load(hidden_gradient + row * width + at);
    return is_up ? UpGradient(Load(source), gradient)
                 : GateGradient(Load(source), Load(source + width), gradient);
  }
};

__device__ uint32_t PairToE4m3(float x, float y) {
  return __nv_cvt_float2_to_fp8x2(make_float2(x, y), __NV_SATFINITE, __NV_E4M3);
}
__device__ uint2 ToE4m3(const float (&values)[kPack]) {
  return make_uint2(PairToE4m3(values[0], values[1]) | PairToE4m3(values[2], values[3]) << 16,
                    PairToE4m3(values[4], values[5]) | PairToE4m3(values[6], values[7]) << 16);
}

// Of a block of values whose largest magnitude this is.
struct Scaling {
  float scale;    // what e4m3 values are multiplied by
  float inverse;  // what they were made with; a last place off does not matter
};
__device__ Scaling ScalingFor(float largest) {
  return largest > 0.0f ? Scaling{largest * (1.0f / kLargest), __fdividef(kLargest, largest)}
                        : Scaling{1.0f, 1.0f};
}

template <int kLanes>
__device__ float LaneMax(float x) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, offset));
  }
  return x;
}

// Thread (x, y) holds columns 8 x and on of rows 4 y and on.
template <typename T, typename Source>
__global__ void __launch_bounds__(kTileThreads, 2) TileKernel(Fp8TileSpans spans) {
  __shared__ float warp_largest[kTileWarps][kTile];  // of columns; of tiles, in the first row
  __shared__ alignas(16) float column_inverse[kTile];
  __shared__ uint2 transposed[kTile][kTile / kPack];  // swizzled: no bank conflicts
  const Source source(spans);
  const int x = threadIdx.x % kPacksPerRow;
  const int y = threadIdx.x / kPacksPerRow;
  const int warp = threadIdx.x / kWarp;
  const int64_t tile_row = blockIdx.y;
  const int64_t tile_column = source.TileColumn(blockIdx.x);
  const int64_t row = tile_row * kTile + y * kRowsPerThread;
  const int64_t column = tile_column * kTile + x * kPack;

  Values values[kRowsPerThread];
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    values[i] = source.At(row + i, column);
  }
  if (spans.wide != nullptr) {
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      Store(static_cast<T*>(spans.wide) + (row + i) * spans.columns + column, values[i]);
    }
  }

  float row_largest[kRowsPerThread];
#pragma unroll
  for (int i = 0; i < kRowsPerThread; ++i) {
    row_largest[i] = 0.0f;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      row_largest[i] = fmaxf(row_largest[i], fabsf(values[i].lane[k]));
    }
  }
  if (spans.by_row != nullptr) {
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      const Scaling scaling = ScalingFor(LaneMax<kPacksPerRow>(row_largest[i]));
      float scaled[kPack];
#pragma unroll
      for (int k = 0; k < kPack; ++k) scaled[k] = values[i].lane[k] * scaling.inverse;
      *reinterpret_cast<uint2*>(spans.by_row + (row + i) * spans.columns + column) = ToE4m3(scaled);
      if (x == i) spans.by_row_scale[tile_column * spans.rows + row + i] = scaling.scale;
    }
  }
  if (spans.by_column == nullptr) return;

  float inverse[kPack];
  if (spans.tile_scales) {
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) largest = fmaxf(largest, row_largest[i]);
    largest = LaneMax<kWarp>(largest);
    if (threadIdx.x % kWarp == 0) warp_largest[0][warp] = largest;
    __syncthreads();
#pragma unroll
    for (int other = 0; other < kTileWarps; ++other) {
      largest = fmaxf(largest, warp_largest[0][other]);
    }
    const Scaling scaling = ScalingFor(largest);
#pragma unroll
    for (int k = 0; k < kPack; ++k) inverse[k] = scaling.inverse;
    if (threadIdx.x == 0) {
      spans.by_column_scale[tile_column * (spans.rows / kTile) + tile_row] = scaling.scale;
    }
  } else {
    alignas(16) float largest[kPack];
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      largest[k] = 0.0f;
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) {
        largest[k] = fmaxf(largest[k], fabsf(values[i].lane[k]));
      }
      largest[k] = fmaxf(largest[k], __shfl_xor_sync(0xFFFFFFFFu, largest[k], kPacksPerRow));
    }
    if (y % 2 == 0) {
      auto* target = reinterpret_cast<float4*>(&warp_largest[warp][x * kPack]);
      target[0] = reinterpret_cast<const float4*>(largest)[0];
      target[1] = reinterpret_cast<const float4*>(largest)[1];
    }
    __syncthreads();
    if (threadIdx.x < kTile) {
      float all = 0.0f;
#pragma unroll
      for (int other = 0; other < kTileWarps; ++other) {
        all = fmaxf(all, warp_largest[other][threadIdx.x]);
      }
      const Scaling scaling = ScalingFor(all);
      column_inverse[threadIdx.x] = scaling.inverse;
      spans.by_column_scale[tile_row * spans.columns + tile_column * kTile + threadIdx.x] =
          scaling.scale;
    }
    __syncthreads();
    const auto* own = reinterpret_cast<const float4*>(&column_inverse[x * kPack]);
    *reinterpret_cast<float4*>(largest) = own[0];
    *reinterpret_cast<float4*>(largest + 4) = own[1];
#pragma unroll
    for (int k = 0; k < kPack; ++k) inverse[k] = largest[k];
  }
#pragma unroll
  for (int k = 0; k < kPack; ++k) {
    reinterpret_cast<uint32_t*>(transposed[x * kPack + k])[y ^ (2 * x)] =
        PairToE4m3(values[0].lane[k] * inverse[k], values[1].lane[k] * inverse[k]) |
        PairToE4m3(values[2].lane[k] * inverse[k], values[3].lane[k] * inverse[k]) << 16;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kTile / (kTileThreads / kPacksPerRow); ++i) {
    const int line = i * (kTileThreads / kPacksPerRow) + y;  // a column of the tile
    *reinterpret_cast<uint2*>(spans.by_column + (tile_column * kTile + line) * spans.rows +
                              tile_row * kTile + x * kPack) = transposed[line][x ^ (line / kPack)];
  }
}

template <typename T>
void LaunchTiles(const Fp8TileSpans& spans, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(spans.columns / kTile),
                  static_cast<unsigned>(spans.rows / kTile));
  switch (spans.source) {
    case Fp8Source::kValues:
      TileKernel<T, ValuesSource<T>><<<grid, kTileThreads, 0, stream>>>(spans);
      break;
    case Fp8Source::kCodes:
      TileKernel<T, CodesSource><<<grid, kTileThreads, 0, stream>>>(spans);
      break;
    case Fp8Source::kGated:
      TileKernel<T, GatedSource<T>><<<grid, kTileThreads, 0, stream>>>(spans);
      break;
    case Fp8Source::kGatedBackward:
      TileKernel<T, GatedBackwardSource<T>><<<grid, kTileThreads, 0, stream>>>(spans);
      break;
  }
}

}  // namespace

int LaunchFp8Tiles(const Fp8TileSpans& spans, void* stream) {
  if (spans.rows % kTile != 0 || spans.columns % kTile != 0 ||
      spans.rows > 65535 * int64_t{kTile}) {
    return cudaErrorInvalidValue;
  }
  return WithType(spans.dtype, [&](auto type) {
    LaunchTiles<decltype(type)>(spans, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace ptq
