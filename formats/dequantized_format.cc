// The dequantized format: a plain checkpoint in the model's dtype whose weights carry the rounding
// of quantization. Loads everywhere, and nothing can be read back from it.
#include <cstring>
#include <utility>

#include "algorithms/affine/record_rows.h"
#include "common/status_macros.h"
#include "formats/safetensors_format.h"

namespace ptq {
namespace {

// Bytes [offset, offset + size) of the record's values: whole rows are made of which they are part.
absl::Status ReadRows(const AffineQuantizedTensor& record, at::ScalarType dtype, int64_t offset,
                      int64_t size, void* out) {
  const int64_t row_bytes = record.int_data.size(1) * static_cast<int64_t>(c10::elementSize(dtype));
  const int64_t first = offset / row_bytes;
  const int64_t end = (offset + size + row_bytes - 1) / row_bytes;
  const at::Tensor rows = Dequantize(RecordRows(record, first, end - first), dtype);
  std::memcpy(out, static_cast<const char*>(rows.const_data_ptr()) + (offset - first * row_bytes),
              static_cast<size_t>(size));
  return absl::OkStatus();
}

class PlainWeight final : public WeightPacking {
 public:
  explicit PlainWeight(DType dtype) : dtype_(dtype) {}

  std::vector<std::string> Names(const PlannedModule& module) const override {
    return {module.module + ".weight"};
  }
  std::string ScaleName(const std::string&) const override { return ""; }
  absl::StatusOr<std::vector<LazyTensor>> Pack(const PlannedModule& module,
                                               const AffineQuantizedTensor& record) const override {
    PTQ_ASSIGN_OR_RETURN(const at::ScalarType dtype, ToScalarType(dtype_));
    std::vector<int64_t> shape = {module.out_features, module.in_features};
    if (module.transposed) std::swap(shape[0], shape[1]);
    LazyTensor weight = MakeLazy(module.module + ".weight", dtype, std::move(shape),
                                 [&record, dtype, transposed = module.transposed] {
                                   const at::Tensor values = Dequantize(record, dtype);
                                   return transposed ? values.t().contiguous() : values;
                                 });
    if (!module.transposed && record.block_size[0] == 1) {
      weight.read = [&record, dtype](int64_t offset, int64_t size, void* out) {
        return ReadRows(record, dtype, offset, size, out);
      };
    }
    return std::vector<LazyTensor>{std::move(weight)};
  }
  absl::Status Check(const PlannedModule&, const RecordView& record,
                     RecordCheck& file) const override {
    return file.CheckDequantized(record, dtype_);
  }
  absl::StatusOr<AffineQuantizedTensor> Unpack(const PlannedModule&,
                                               const CheckpointReader&) const override {
    return absl::UnimplementedError("a plain weight holds no record");
  }

 private:
  const DType dtype_;
};

class DequantizedFormat final : public SafetensorsFormat {
 public:
  std::string name() const override { return "dequantized"; }

 protected:
  std::unique_ptr<WeightPacking> PackingFor(const ExportPlan& plan) const override {
    return std::make_unique<PlainWeight>(CheckpointDType(plan.source));
  }
  FolderConfig ConfigFor(const ExportPlan&) const override { return {}; }
};

}  // namespace

std::unique_ptr<CheckpointFormat> MakeDequantizedFormat() {
  return std::make_unique<DequantizedFormat>();
}

}  // namespace ptq
