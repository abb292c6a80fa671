// Writes one safetensors file, tensor by tensor, durable and reproducible.
#ifndef PTQ_FORMATS_SAFETENSORS_WRITER_H_
#define PTQ_FORMATS_SAFETENSORS_WRITER_H_

#include <ATen/core/Tensor.h>

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

// A tensor that comes into memory when it is written and leaves it afterwards.
struct LazyTensor {
  std::string name;
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> shape;
  std::function<absl::StatusOr<at::Tensor>()> load;  // of that dtype and shape; called once
};

// Tensors that are in memory anyway.
std::vector<LazyTensor> ToLazy(std::vector<NamedTensor> tensors);

// Tensors ordered by descending element size, then by name; header padded to 8 bytes; no
// timestamps: equal input gives equal bytes. The file is synced, then `check(temporary path)` runs
// (may be empty), then it gets its name. Returns the file's SHA-256. kResourceExhausted on a full
// disk, leaving nothing.
absl::StatusOr<std::string> WriteSafetensors(
    const std::string& path, std::vector<NamedTensor> tensors,
    const std::map<std::string, std::string>& metadata,
    const std::function<absl::Status(const std::string&)>& check = {});
// The same with one tensor in memory at a time. An error of `load` is returned as it is.
absl::StatusOr<std::string> WriteSafetensors(
    const std::string& path, std::vector<LazyTensor> tensors,
    const std::map<std::string, std::string>& metadata,
    const std::function<absl::Status(const std::string&)>& check = {});

}  // namespace ptq

#endif  // PTQ_FORMATS_SAFETENSORS_WRITER_H_
