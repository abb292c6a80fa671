// A checkpoint in which some weights carry the rounding of quantization: what a model is read from
// whose embedding or head is quantized.
#ifndef PTQ_WORKER_DEQUANTIZED_READER_H_
#define PTQ_WORKER_DEQUANTIZED_READER_H_

#include <functional>
#include <map>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "algorithms/affine/affine_quantized_tensor.h"
#include "formats/checkpoint_reader.h"

namespace ptq {

// Holds no weights: a record is asked for whenever its tensor is read, and decoded in pieces of
// rows. `plain` must outlive it, and so must what `record` needs.
class DequantizedReader final : public CheckpointReader {
 public:
  using RecordSource = std::function<absl::StatusOr<AffineQuantizedTensor>()>;

  explicit DequantizedReader(const CheckpointReader& plain) : plain_(plain) {}
  // Tensor `name` is that of `record`, by groups or rows, rounded to the dtype that it has in
  // `plain`. Before the first read.
  void Replace(const std::string& name, RecordSource record) { records_[name] = std::move(record); }

  absl::StatusOr<StoredTensor> Describe(const std::string& name) const override {
    return plain_.Describe(name);
  }
  absl::Status ReadBytes(const std::string& name, int64_t offset, int64_t size,
                         void* out) const override;
  void Prefetch(const std::string& name) const override { plain_.Prefetch(name); }
  bool Contains(const std::string& name) const override { return plain_.Contains(name); }

 private:
  const CheckpointReader& plain_;
  std::map<std::string, RecordSource> records_;
};

}  // namespace ptq

#endif  // PTQ_WORKER_DEQUANTIZED_READER_H_
