// GPTQ's loop over a tile of columns on a CUDA device. Rows of a weight are independent of each
// other, so that a thread takes a row, and no thread waits for another one.
#include <cuda_runtime.h>

#include <cstdint>

#include "algorithms/cuda/kernels.h"
#include "algorithms/cuda/weight_units.cuh"
#include "algorithms/gptq/gptq_tile_state.h"

namespace ptq {
namespace {

constexpr int kRows = 64;   // of the weight in a block, one a thread
constexpr int kPanel = 16;  // columns that a thread holds in registers at a time
constexpr int kTile = GptqTileState::kMaxColumns;
// The tile's feedback, and the errors of the block's rows: 96 of the 99 KiB that a block may have
// on every device from compute capability 8.0 on.
constexpr int kSharedBytes = (kTile * kTile + kTile * kRows) * static_cast<int>(sizeof(float));

// The updates of a column are added in the order of the columns that they come from, as on the
// host: those of earlier panels when its own panel begins, which keeps the tile out of memory.
__global__ void __launch_bounds__(kRows) SolveTileKernel(GptqTileState state) {
  extern __shared__ float4 shared[];
  float* const feedback = reinterpret_cast<float*>(shared);      // [kTile, kTile]
  float* const errors = feedback + kTile * kTile + threadIdx.x;  // [kTile], kRows apart
#pragma unroll 32
  for (int i = 0; i < kTile; ++i) {
#pragma unroll
    for (int first = 0; first < kTile; first += kRows) {
      const int j = first + static_cast<int>(threadIdx.x);
      feedback[i * kTile + j] =
          i < j && j < state.columns ? state.feedback[i * state.feedback_stride + j] : 0.0f;
    }
  }
  __syncthreads();
  const int64_t row = blockIdx.x * int64_t{kRows} + threadIdx.x;
  if (row >= state.rows) {
    return;
  }
  const auto lowest = static_cast<float>(state.quant_min);
  const auto highest = static_cast<float>(state.quant_max);
  bool finite = true;
  for (int begin = 0; begin < state.columns; begin += kPanel) {
    float weight[kPanel];
    float scale[kPanel];
    float zero_point[kPanel];
#pragma unroll
    for (int k = 0; k < kPanel; ++k) {  // zeros beyond the tile change nothing
      const int i = begin + k;
      const bool inside = i < state.columns;
      const int64_t group = inside ? state.groups[i] * state.rows + row : 0;
      weight[k] = inside ? state.weight[i * state.rows + row] : 0.0f;
      scale[k] = inside ? state.scale[group] : 1.0f;
      zero_point[k] = inside && state.zero_point != nullptr ? state.zero_point[group] : 0.0f;
    }
    for (int i = 0; i < begin; ++i) {
      const float error = errors[i * kRows];
#pragma unroll
      for (int k = 0; k < kPanel; k += 4) {
        const Pack<float, 4> part = LoadPack<float, 4>(feedback + i * kTile + begin + k);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          weight[k + j] = fmaf(-part.lane[j], error, weight[k + j]);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kPanel; ++k) {
      const int i = begin + k;
      const float code = fminf(fmaxf(rintf(weight[k] / scale[k]) + zero_point[k], lowest), highest);
      const float error = weight[k] - (code - zero_point[k]) * scale[k];
      finite = finite && isfinite(error);
      errors[i * kRows] = error;
      if (i < state.columns) {
        state.codes[i * state.rows + row] = static_cast<int8_t>(code);
        state.errors[i * state.rows + row] = error;
      }
#pragma unroll
      for (int j = k + 1; j < kPanel; ++j) {
        weight[j] = fmaf(-feedback[i * kTile + begin + j], error, weight[j]);
      }
    }
  }
  if (!finite) {
    *state.failed = 1;
  }
}

}  // namespace

int LaunchSolveGptqTile(const GptqTileState& state, void* stream) {
  if (state.rows < 1 || state.columns < 1 || state.columns > kTile) {
    return cudaErrorInvalidValue;
  }
  const cudaError_t error = cudaFuncSetAttribute(
      SolveTileKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) {
    return error;
  }
  SolveTileKernel<<<BlocksFor(state.rows, kRows), kRows, kSharedBytes,
                    static_cast<cudaStream_t>(stream)>>>(state);
  return cudaGetLastError();
}

}  // namespace ptq
