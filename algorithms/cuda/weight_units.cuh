// What kernels over the weights of a linear layer share: packs of neighbouring values, sums over
// the lanes of a group, and the choice of a kernel by how the weight is stored.
#ifndef PTQ_ALGORITHMS_CUDA_WEIGHT_UNITS_CUH_
#define PTQ_ALGORITHMS_CUDA_WEIGHT_UNITS_CUH_

#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "algorithms/auto_round/weight_layout.h"

namespace ptq {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 8;
constexpr int kThreads = kWarp * kWarpsPerBlock;
// Groups of up to a warp's packs are held in the registers of so many lanes; longer ones belong to
// a block, up to this many values (a row), beyond which a group is cut into units.
constexpr int kLanePack = 4;
constexpr int64_t kLongestBlockGroup = 65536;

// `kVector` neighbouring words, moved as one.
template <typename Word, int kVector>
struct alignas(kVector * sizeof(Word)) Pack {
  Word lane[kVector];
};
template <typename Word, int kVector>
__device__ Pack<Word, kVector> LoadPack(const Word* source) {
  return *reinterpret_cast<const Pack<Word, kVector>*>(source);
}
template <typename Word, int kVector>
__device__ void StorePack(Word* target, const Pack<Word, kVector>& pack) {
  *reinterpret_cast<Pack<Word, kVector>*>(target) = pack;
}

// Sum over `kLanes` neighbouring lanes, the same on all of them and in every run.
template <int kLanes>
__device__ float LaneSum(float x) {
  const unsigned first = threadIdx.x % kWarp / kLanes * kLanes;
  const unsigned mask = kLanes == kWarp ? 0xFFFFFFFFu : ((1u << kLanes) - 1) << first;
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(mask, x, offset);
  }
  return x;
}

// Sum over a block of kThreads, on all its threads. `scratch` [kWarpsPerBlock] is shared memory
// that no thread still reads.
inline __device__ float BlockSum(float x, float* scratch) {
  x = LaneSum<kWarp>(x);
  if (threadIdx.x % kWarp == 0) {
    scratch[threadIdx.x / kWarp] = x;
  }
  __syncthreads();
  float sum = 0.0f;
  for (int warp = 0; warp < kWarpsPerBlock; ++warp) {
    sum += scratch[warp];
  }
  return sum;
}

inline unsigned BlocksFor(int64_t pieces, int64_t pieces_per_block) {
  return static_cast<unsigned>((pieces + pieces_per_block - 1) / pieces_per_block);
}

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// Calls launch(Storage{}, Rounding{}).
template <typename Launch>
cudaError_t WithStorage(WeightStorage storage, const Launch& launch) {
  namespace r = rounding;
  switch (storage) {
    case WeightStorage::kFloat32:
      launch(r::Float32{}, r::Unrounded{});
      return cudaGetLastError();
    case WeightStorage::kFloat32RoundedToBFloat16:
      launch(r::Float32{}, r::RoundedToBFloat16{});
      return cudaGetLastError();
    case WeightStorage::kFloat32RoundedToHalf:
      launch(r::Float32{}, r::RoundedToHalf{});
      return cudaGetLastError();
    case WeightStorage::kBFloat16:
      launch(r::BFloat16{}, r::RoundedToBFloat16{});
      return cudaGetLastError();
    case WeightStorage::kHalf:
      launch(r::Half{}, r::RoundedToHalf{});
      return cudaGetLastError();
  }
  return cudaErrorInvalidValue;
}

// Calls launch(Constant<lanes>{}) if a group fits into the packs of so many lanes, else returns
// false.
template <typename Launch>
bool WithLanes(int64_t group_size, const Launch& launch) {
  switch (group_size) {
    case 16:
      launch(Constant<16 / kLanePack>{});
      return true;
    case 32:
      launch(Constant<32 / kLanePack>{});
      return true;
    case 64:
      launch(Constant<64 / kLanePack>{});
      return true;
    case 128:
      launch(Constant<128 / kLanePack>{});
      return true;
    default:
      return false;
  }
}

// Writes kVector decoded values from `at` on, of codes q - z: times the scale, rounded as the
// weight is stored; or, for FP8 products, the codes themselves, which e4m3 holds exactly, and the
// scale.
template <typename Storage, typename Rounding, int kVector>
__device__ void StoreDecoded(const Fp8Codes& fp8, void* fake_quantized,
                             const Pack<float, kVector>& codes, int64_t at, int64_t group,
                             int64_t group_size, float scale) {
  using Word = typename Storage::Word;
  if (fp8.codes != nullptr) {
    Pack<uint8_t, kVector> bytes;
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      bytes.lane[k] = __nv_cvt_float_to_fp8(codes.lane[k], __NV_SATFINITE, __NV_E4M3);
    }
    StorePack(fp8.codes + at, bytes);
    if (at == group * group_size) {
      fp8.scale[group % fp8.groups_per_row * fp8.scale_stride + group / fp8.groups_per_row] = scale;
    }
    return;
  }
  Pack<Word, kVector> outputs;
#pragma unroll
  for (int k = 0; k < kVector; ++k) {
    outputs.lane[k] = Storage::Store(Rounding::Round(scale * codes.lane[k]));
  }
  StorePack(static_cast<Word*>(fake_quantized) + at, outputs);
}

// Whether packs of four of both words can be moved as one.
inline bool FourFit(int64_t group_size, const void* pointer, size_t word) {
  return group_size % 4 == 0 && reinterpret_cast<uintptr_t>(pointer) % (4 * word) == 0;
}

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_CUDA_WEIGHT_UNITS_CUH_
