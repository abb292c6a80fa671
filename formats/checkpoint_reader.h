// Tensors out of a Hugging Face folder, one at a time.
#ifndef PTQ_FORMATS_CHECKPOINT_READER_H_
#define PTQ_FORMATS_CHECKPOINT_READER_H_

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/status_macros.h"
#include "common/torch_status.h"
#include "formats/headers/inspect.h"

namespace ptq {

struct StoredTensor {
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> shape;

  int64_t bytes() const {
    auto bytes = static_cast<int64_t>(c10::elementSize(dtype));
    for (const int64_t extent : shape) bytes *= extent;
    return bytes;
  }
};

// Thread-safe. Implemented by SafetensorsCheckpointReader; tests use tensors in memory.
class CheckpointReader {
 public:
  virtual ~CheckpointReader() = default;

  // A fresh CPU tensor in the stored dtype. kNotFound; kDataLoss for a file that became shorter;
  // kInvalidArgument naming the tensor if a value is NaN or infinite.
  absl::StatusOr<at::Tensor> Read(const std::string& name) const {
    return CatchTorchErrors("tensor " + name, [&]() -> absl::StatusOr<at::Tensor> {
      PTQ_ASSIGN_OR_RETURN(const StoredTensor stored, Describe(name));
      at::Tensor tensor = at::empty(stored.shape, at::TensorOptions().dtype(stored.dtype));
      PTQ_RETURN_IF_ERROR(ReadBytes(name, 0, stored.bytes(), tensor.data_ptr()));
      return tensor;
    });
  }
  // kNotFound; kUnimplemented for a dtype that libtorch lacks.
  virtual absl::StatusOr<StoredTensor> Describe(const std::string& name) const = 0;
  // Bytes [offset, offset + size) of the tensor, in whole elements; errors are Read's.
  virtual absl::Status ReadBytes(const std::string& name, int64_t offset, int64_t size,
                                 void* out) const = 0;
  // Asks the system to have the tensor's bytes at hand soon. A hint: may do nothing.
  virtual void Prefetch(const std::string& name) const = 0;
  virtual bool Contains(const std::string& name) const = 0;
};

// Reads by pread from the files that the index names.
class SafetensorsCheckpointReader final : public CheckpointReader {
 public:
  static absl::StatusOr<std::unique_ptr<SafetensorsCheckpointReader>> Open(CheckpointIndex index);
  absl::StatusOr<StoredTensor> Describe(const std::string& name) const override;
  absl::Status ReadBytes(const std::string& name, int64_t offset, int64_t size,
                         void* out) const override;
  void Prefetch(const std::string& name) const override;
  bool Contains(const std::string& name) const override;
  const CheckpointIndex& index() const { return index_; }

 private:
  explicit SafetensorsCheckpointReader(CheckpointIndex index) : index_(std::move(index)) {}
  absl::StatusOr<const CheckpointTensor*> Find(const std::string& name) const;
  const ReadableFile& FileOf(const CheckpointTensor& tensor) const;
  CheckpointIndex index_;
  std::vector<ReadableFile> files_;  // in the order of index_.files()
};

// The ScalarType for `dtype`. kUnimplemented for what libtorch lacks.
absl::StatusOr<at::ScalarType> ToScalarType(DType dtype);
DType FromScalarType(at::ScalarType type);  // of the types that we write

}  // namespace ptq

#endif  // PTQ_FORMATS_CHECKPOINT_READER_H_
