// Tensors out of a Hugging Face folder, one at a time.
#ifndef PTQ_FORMATS_CHECKPOINT_READER_H_
#define PTQ_FORMATS_CHECKPOINT_READER_H_

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/headers/inspect.h"

namespace ptq {

// Memory for a tensor of `shape`: contiguous, of `dtype`, on the CPU.
using TensorAllocator = std::function<at::Tensor(at::IntArrayRef shape, at::ScalarType dtype)>;

// Thread-safe. Implemented by SafetensorsCheckpointReader; tests use tensors in memory.
class CheckpointReader {
 public:
  virtual ~CheckpointReader() = default;

  // A fresh CPU tensor in the stored dtype. kNotFound; kDataLoss for a file that became shorter;
  // kInvalidArgument naming the tensor if a value is NaN or infinite.
  absl::StatusOr<at::Tensor> Read(const std::string& name) const {
    return ReadInto(name, [](at::IntArrayRef shape, at::ScalarType dtype) {
      return at::empty(shape, at::TensorOptions().dtype(dtype));
    });
  }
  // The same in memory of the caller's, which holds anything after an error.
  virtual absl::StatusOr<at::Tensor> ReadInto(const std::string& name,
                                              const TensorAllocator& allocate) const = 0;
  // Asks the system to have the tensor's bytes at hand soon. A hint: may do nothing.
  virtual void Prefetch(const std::string& name) const = 0;
  virtual bool Contains(const std::string& name) const = 0;
};

// Reads by pread from the files that the index names.
class SafetensorsCheckpointReader final : public CheckpointReader {
 public:
  static absl::StatusOr<std::unique_ptr<SafetensorsCheckpointReader>> Open(CheckpointIndex index);
  absl::StatusOr<at::Tensor> ReadInto(const std::string& name,
                                      const TensorAllocator& allocate) const override;
  void Prefetch(const std::string& name) const override;
  bool Contains(const std::string& name) const override;
  const CheckpointIndex& index() const { return index_; }

 private:
  explicit SafetensorsCheckpointReader(CheckpointIndex index) : index_(std::move(index)) {}
  const ReadableFile& FileOf(const CheckpointTensor& tensor) const;
  CheckpointIndex index_;
  std::vector<ReadableFile> files_;  // in the order of index_.files()
};

// The ScalarType for `dtype`. kUnimplemented for what libtorch lacks.
absl::StatusOr<at::ScalarType> ToScalarType(DType dtype);
DType FromScalarType(at::ScalarType type);  // of the types that we write

}  // namespace ptq

#endif  // PTQ_FORMATS_CHECKPOINT_READER_H_
