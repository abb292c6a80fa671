// ggml's K-quants (ggml-common.h): types of GGUF whose scales are quantized themselves. A row is
// cut into super-blocks of 256 columns with one or two float16 scales, and these into groups with
// small integer scales.
#ifndef PTQ_COMMON_K_QUANT_H_
#define PTQ_COMMON_K_QUANT_H_

#include <array>
#include <cstddef>
#include <cstdint>

namespace ptq {

enum class KQuant { kNone, kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K };
// By the enum, less kNone.
inline constexpr std::array kKQuantNames = {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"};

struct KQuantTraits {
  int bits;            // of a code
  int64_t group_size;  // columns that share an integer scale
  // value = d * sc * code, the code signed; otherwise d * sc * u - dmin * m, u unsigned.
  bool symmetric;
  int lowest_scale;   // of sc, and of m where there is one
  int highest_scale;  // likewise
  int64_t bytes;      // of a super-block in a file
};

inline constexpr int64_t kSuperBlock = 256;

// Not for kNone.
constexpr KQuantTraits TraitsOf(KQuant type) {
  switch (type) {
    case KQuant::kQ2_K:
      return {2, 16, false, 0, 15, 84};
    case KQuant::kQ3_K:
      return {3, 16, true, -32, 31, 110};
    case KQuant::kQ4_K:
      return {4, 32, false, 0, 63, 144};
    case KQuant::kQ5_K:
      return {5, 32, false, 0, 63, 176};
    default:
      return {6, 16, true, -128, 127, 210};
  }
}

// "Q4_K"; "" for kNone.
constexpr const char* KQuantName(KQuant type) {
  return type == KQuant::kNone ? "" : kKQuantNames[static_cast<size_t>(type) - 1];
}

}  // namespace ptq

#endif  // PTQ_COMMON_K_QUANT_H_
