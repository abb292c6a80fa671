// The element types that a safetensors header can name. No libtorch: ptqd reads headers too.
#ifndef PTQ_FORMATS_HEADERS_DTYPE_H_
#define PTQ_FORMATS_HEADERS_DTYPE_H_

#include <cstdint>
#include <optional>
#include <string>

namespace ptq {

enum class DType {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3FNUZ,
  kF8E5M2FNUZ,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};

// Bits of one element: 4 and 6 for the sub-byte types.
int DTypeBits(DType dtype);
// "BF16", as the header spells it.
const char* DTypeName(DType dtype);
std::optional<DType> DTypeFromName(const std::string& name);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_DTYPE_H_
