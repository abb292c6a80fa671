// Writes one safetensors file, tensor by tensor, durable and reproducible.
#ifndef PTQ_FORMATS_SAFETENSORS_WRITER_H_
#define PTQ_FORMATS_SAFETENSORS_WRITER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ptq {

struct NamedTensor {
  std::string name;
  at::Tensor tensor;  // any device; written contiguous, little-endian
};

// Fills `out` with bytes [offset, offset + size) of something.
using ByteSource = std::function<absl::Status(int64_t offset, int64_t size, void* out)>;

// A tensor that comes into memory when it is written and leaves it afterwards: whole by `load`, or
// piece by piece by `read`, whichever is set.
struct LazyTensor {
  std::string name;
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> shape;
  std::function<absl::StatusOr<at::Tensor>()> load;  // of that dtype and shape; called once
  ByteSource read;                                   // called in order, once a piece
};

// Tensors that are in memory anyway.
std::vector<LazyTensor> ToLazy(std::vector<NamedTensor> tensors);

// Tensors ordered by descending element size, then by name; header padded to 8 bytes; no
// timestamps: equal input gives equal bytes. `check(temporary path)` runs on the whole file (may be
// empty) while it is being synced; after both it gets its name. Returns the file's SHA-256.
// kResourceExhausted on a full disk, leaving nothing.
absl::StatusOr<std::string> WriteSafetensors(
    const std::string& path, std::vector<NamedTensor> tensors,
    const std::map<std::string, std::string>& metadata,
    const std::function<absl::Status(const std::string&)>& check = {});
// The same with one tensor in memory at a time. An error of `load` or `read` is returned as it is;
// both may run on another thread.
absl::StatusOr<std::string> WriteSafetensors(
    const std::string& path, std::vector<LazyTensor> tensors,
    const std::map<std::string, std::string>& metadata,
    const std::function<absl::Status(const std::string&)>& check = {});

}  // namespace ptq

#endif  // PTQ_FORMATS_SAFETENSORS_WRITER_H_
