// Seeds of random streams that belong to one seed.
#ifndef PTQ_COMMON_SEED_H_
#define PTQ_COMMON_SEED_H_

#include <cstdint>

namespace ptq {

// SplitMix64 (Steele et al. 2014) of `seed`, then of that plus `index`: neighbouring indices of
// neighbouring seeds get unrelated streams.
constexpr uint64_t MixSeed(uint64_t seed, int64_t index) {
  const auto mix = [](uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  };
  return mix(mix(seed) + static_cast<uint64_t>(index));
}

}  // namespace ptq

#endif  // PTQ_COMMON_SEED_H_
