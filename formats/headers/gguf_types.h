// The tensor types of GGUF that we write, and which of them holds records of which scheme.
#ifndef PTQ_FORMATS_HEADERS_GGUF_TYPES_H_
#define PTQ_FORMATS_HEADERS_GGUF_TYPES_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "formats/headers/planned_module.h"

namespace ptq {

// ggml's numbers.
enum class GgufType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

struct GgufTypeTraits {
  const char* name;  // "Q4_0"; nullptr: none of ours
  int64_t elements;  // of one block, along a row
  int64_t bytes;     // of one block
};
GgufTypeTraits TraitsOf(GgufType type);

// Whether its blocks have a minimum: values are u * s + m, u the unsigned code (Q4_1, Q5_1).
bool HasMinimum(GgufType type);

// The K-quant that a type is; kNone: none.
KQuant KQuantOf(GgufType type);

// The type that holds records of `module`'s scheme. kFailedPrecondition naming the module, what
// stands in the way, and a scheme or format that fits.
absl::StatusOr<GgufType> GgufTypeOf(const PlannedModule& module);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_GGUF_TYPES_H_
