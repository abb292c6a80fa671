// The scale search on a CUDA device. A lane of a warp tries candidates of its own on weights that
// all lanes read together, so that errors are added in the host's order, without reductions: the
// arithmetic is scale_search_math.h's, built with -fmad=false, and the results are the host's bits.
#include <cuda_runtime.h>

#include <cstdint>

#include "algorithms/auto_round/rounding_math.h"
#include "algorithms/cuda/kernels.h"
#include "algorithms/cuda/weight_units.cuh"
#include "algorithms/rtn/scale_search_math.h"
#include "algorithms/rtn/scale_search_state.h"

namespace ptq {
namespace {

namespace r = rounding;
namespace s = scale_search;

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kRowWarps = static_cast<int>(s::kRowsPerTile);
constexpr int kRowThreads = kWarp * kRowWarps;
constexpr int kVector = 4;  // columns that a lane reads at once

// A piece of a row in shared memory.
struct Tile {
  alignas(16) float weight[s::kColumnsPerTile];
  alignas(16) float importance[s::kColumnsPerTile];
};

// Fills the tile by one warp; returns `count` rounded up to whole vectors. What is beyond `count`
// is zero, which every candidate represents without error.
template <typename Storage>
__device__ int LoadTile(const typename Storage::Word* weight, const float* importance, int count,
                        int lane, Tile& tile) {
  const int padded = (count + kVector - 1) / kVector * kVector;
  for (int i = lane; i < padded; i += kWarp) {
    tile.weight[i] = i < count ? Storage::Load(weight[i]) : 0.0f;
    tile.importance[i] = i < count ? importance[i] : 0.0f;
  }
  __syncwarp();
  return padded;
}

struct Range {
  float low;   // <= 0
  float high;  // >= 0
};

// The range of a group, by one warp.
template <typename Storage>
__device__ Range RangeOfGroup(const typename Storage::Word* weight, int64_t count, int lane) {
  Range range{0.0f, 0.0f};
  for (int64_t i = lane; i < count; i += kWarp) {
    const float x = Storage::Load(weight[i]);
    range.low = fminf(range.low, x);
    range.high = fmaxf(range.high, x);
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    range.low = fminf(range.low, __shfl_xor_sync(kAllLanes, range.low, offset));
    range.high = fmaxf(range.high, __shfl_xor_sync(kAllLanes, range.high, offset));
  }
  return range;
}

// The rule of a lane's j-th candidate. Past the last one it is the last one again, which does not
// change what is chosen.
__device__ int RuleIndex(const ScaleSearchState& state, int lane, int j) {
  return min(lane + kWarp * j, state.rule_count - 1);
}

// One lane's candidates for a group.
template <bool kSymmetric, int kPerLane>
class LaneSearch {
 public:
  __device__ LaneSearch(const ScaleSearchState& state, Range range, int lane) {
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const s::ScaleAndZero pair = s::ApplyRule(state.rules[RuleIndex(state, lane, j)], range.low,
                                                range.high, state.bits, kSymmetric);
      scales_[j] = pair.scale;
      candidates_[j] = s::CandidateOf(pair, state.bits, kSymmetric);
      errors_[j] = 0;
    }
  }

  // Adds the errors of a row of the group; by one warp, through its tile.
  template <typename Storage>
  __device__ void AddRow(const typename Storage::Word* weight, const float* importance,
                         int64_t count, int lane, Tile& tile) {
    for (int64_t begin = 0; begin < count; begin += s::kColumnsPerTile) {
      const int length = static_cast<int>(min(s::kColumnsPerTile, count - begin));
      AddTile(tile, LoadTile<Storage>(weight + begin, importance + begin, length, lane, tile));
      __syncwarp();  // all lanes have read the tile
    }
  }

  // Of the lane's j-th candidate, in units of the squared scale.
  __device__ double error(int j) const { return errors_[j]; }
  __device__ void set_error(int j, double error) { errors_[j] = error; }

  // The rule of the first of the candidates of all lanes with the least error; by one warp.
  __device__ int ChooseRule(const ScaleSearchState& state, int lane) const {
    double least = __longlong_as_double(0x7FF0000000000000);  // infinity
    int best = 0;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const double total = s::TotalError(errors_[j], scales_[j]);
      if (total < least) {
        least = total;
        best = RuleIndex(state, lane, j);
      }
    }
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const double other = __shfl_xor_sync(kAllLanes, least, offset);
      const int other_best = __shfl_xor_sync(kAllLanes, best, offset);
      if (other < least || (other == least && other_best < best)) {
        least = other;
        best = other_best;
      }
    }
    return best;
  }

 private:
  __device__ void AddTile(const Tile& tile, int count) {
    float sums[kPerLane] = {};
    for (int i = 0; i < count; i += kVector) {
      alignas(16) float weights[kVector];
      alignas(16) float importances[kVector];
      *reinterpret_cast<float4*>(weights) = *reinterpret_cast<const float4*>(tile.weight + i);
      *reinterpret_cast<float4*>(importances) =
          *reinterpret_cast<const float4*>(tile.importance + i);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
#pragma unroll
        for (int j = 0; j < kPerLane; ++j) {
          sums[j] += s::ErrorOf(weights[k], importances[k], candidates_[j]);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      errors_[j] += sums[j];
    }
  }

  float scales_[kPerLane];
  s::Candidate candidates_[kPerLane];
  double errors_[kPerLane];
};

template <bool kSymmetric>
__device__ void StoreResult(const ScaleSearchState& state, int64_t group, Range range, int rule) {
  const s::ScaleAndZero pair =
      s::ApplyRule(state.rules[rule], range.low, range.high, state.bits, kSymmetric);
  state.scale[group] = r::Half::Store(pair.scale);
  state.zero_point[group] =
      kSymmetric ? 0 : static_cast<int>(pair.zero_point) - (1 << (state.bits - 1));
}

// Groups within rows, one warp each.
template <typename Storage, bool kSymmetric, int kPerLane>
__global__ void __launch_bounds__(kThreads) SearchGroupsKernel(ScaleSearchState state) {
  __shared__ Tile tiles[kWarpsPerBlock];
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int64_t group = blockIdx.x * int64_t{kWarpsPerBlock} + warp;
  if (group >= state.groups) {
    return;
  }
  const int64_t begin = group * state.group_size;
  const auto* weight = static_cast<const typename Storage::Word*>(state.weight) + begin;
  const Range range = RangeOfGroup<Storage>(weight, state.group_size, lane);
  LaneSearch<kSymmetric, kPerLane> search(state, range, lane);
  search.template AddRow<Storage>(weight, state.importance + begin % state.columns,
                                  state.group_size, lane, tiles[warp]);
  const int rule = search.ChooseRule(state, lane);
  if (lane == 0) {
    StoreResult<kSymmetric>(state, group, range, rule);
  }
}

__device__ Range RangeOfTensor(const ScaleSearchState& state) {
  return Range{r::Smaller(state.extremes[0], 0.0f), r::Larger(state.extremes[1], 0.0f)};
}

// The whole weight as one group, first step: errors of a tile of rows, one warp a row.
template <typename Storage, bool kSymmetric, int kPerLane>
__global__ void __launch_bounds__(kRowThreads) TileErrorsKernel(ScaleSearchState state) {
  union Scratch {
    Tile tiles[kRowWarps];
    double errors[kRowWarps][kWarp * kPerLane];  // after the tiles
  };
  __shared__ Scratch scratch;
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int64_t row = blockIdx.x * s::kRowsPerTile + warp;
  LaneSearch<kSymmetric, kPerLane> search(state, RangeOfTensor(state), lane);
  if (row < state.rows) {
    const auto* weight =
        static_cast<const typename Storage::Word*>(state.weight) + row * state.columns;
    search.template AddRow<Storage>(weight, state.importance, state.columns, lane,
                                    scratch.tiles[warp]);
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    scratch.errors[warp][lane + kWarp * j] = search.error(j);
  }
  __syncthreads();
  const int candidate = threadIdx.x;
  if (candidate < state.rule_count) {
    double sum = 0;
    for (int i = 0; i < kRowWarps; ++i) {
      sum += scratch.errors[i][candidate];
    }
    state.tile_errors[blockIdx.x * int64_t{state.rule_count} + candidate] = sum;
  }
}

// Second step, one block: the sums over the tiles of rows.
template <bool kSymmetric, int kPerLane>
__global__ void __launch_bounds__(kWarp* kPerLane)
    ChooseForTensorKernel(ScaleSearchState state, int64_t row_tiles) {
  __shared__ double errors[kWarp * kPerLane];
  const int candidate = threadIdx.x;
  if (candidate < state.rule_count) {
    double sum = 0;
    for (int64_t tile = 0; tile < row_tiles; ++tile) {
      sum += state.tile_errors[tile * state.rule_count + candidate];
    }
    errors[candidate] = sum;
  }
  __syncthreads();
  const int lane = threadIdx.x;
  if (lane >= kWarp) {
    return;
  }
  const Range range = RangeOfTensor(state);
  LaneSearch<kSymmetric, kPerLane> search(state, range, lane);
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    search.set_error(j, errors[RuleIndex(state, lane, j)]);
  }
  const int rule = search.ChooseRule(state, lane);
  if (lane == 0) {
    StoreResult<kSymmetric>(state, 0, range, rule);
  }
}

template <typename Storage, bool kSymmetric, int kPerLane>
void Launch(const ScaleSearchState& state, cudaStream_t stream) {
  if (state.group_size <= state.columns) {
    SearchGroupsKernel<Storage, kSymmetric, kPerLane>
        <<<BlocksFor(state.groups, kWarpsPerBlock), kThreads, 0, stream>>>(state);
    return;
  }
  const int64_t row_tiles = state.row_tiles();
  TileErrorsKernel<Storage, kSymmetric, kPerLane>
      <<<static_cast<unsigned>(row_tiles), kRowThreads, 0, stream>>>(state);
  ChooseForTensorKernel<kSymmetric, kPerLane><<<1, kWarp * kPerLane, 0, stream>>>(state, row_tiles);
}

}  // namespace

int LaunchSearchScales(const ScaleSearchState& state, void* stream) {
  // 181 symmetric rules at 2 bits, else 201; 324 asymmetric ones.
  const int per_lane = (state.rule_count + kWarp - 1) / kWarp;
  if (per_lane > (state.symmetric ? 7 : 11)) {
    return cudaErrorInvalidValue;
  }
  return WithStorage(state.storage, [&](auto storage, auto) {
    using Storage = decltype(storage);
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    if (!state.symmetric) {
      Launch<Storage, false, 11>(state, cuda_stream);
    } else if (per_lane == 7) {
      Launch<Storage, true, 7>(state, cuda_stream);
    } else {
      Launch<Storage, true, 6>(state, cuda_stream);
    }
  });
}

}  // namespace ptq
