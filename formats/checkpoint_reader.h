// Tensors out of a Hugging Face folder, one at a time.
#ifndef PTQ_FORMATS_CHECKPOINT_READER_H_
#define PTQ_FORMATS_CHECKPOINT_READER_H_

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/headers/inspect.h"

namespace ptq {

// Thread-safe. Implemented by SafetensorsCheckpointReader; tests use tensors in memory.
class CheckpointReader {
 public:
  virtual ~CheckpointReader() = default;

  // A fresh CPU tensor in the stored dtype. kNotFound; kDataLoss for a file that became shorter;
  // kInvalidArgument naming the tensor if a value is NaN or infinite.
  virtual absl::StatusOr<at::Tensor> Read(const std::string& name) const = 0;
  virtual bool Contains(const std::string& name) const = 0;
};

// Reads by pread from the files that the index names.
class SafetensorsCheckpointReader final : public CheckpointReader {
 public:
  static absl::StatusOr<std::unique_ptr<SafetensorsCheckpointReader>> Open(CheckpointIndex index);
  absl::StatusOr<at::Tensor> Read(const std::string& name) const override;
  bool Contains(const std::string& name) const override;
  const CheckpointIndex& index() const { return index_; }

 private:
  explicit SafetensorsCheckpointReader(CheckpointIndex index) : index_(std::move(index)) {}
  CheckpointIndex index_;
  std::vector<ReadableFile> files_;  // in the order of index_.files()
};

// The ScalarType for `dtype`. kUnimplemented for what libtorch lacks.
absl::StatusOr<at::ScalarType> ToScalarType(DType dtype);
DType FromScalarType(at::ScalarType type);  // of the types that we write

}  // namespace ptq

#endif  // PTQ_FORMATS_CHECKPOINT_READER_H_
