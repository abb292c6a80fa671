// The dequantized format: a plain checkpoint in the model's dtype whose weights carry the rounding
// of quantization. Loads everywhere, and nothing can be read back from it.
#include <utility>

#include "common/status_macros.h"
#include "formats/safetensors_format.h"

namespace ptq {
namespace {

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
    return std::vector<LazyTensor>{MakeLazy(module.module + ".weight", dtype, std::move(shape),
                                            [&record, dtype, transposed = module.transposed] {
                                              const at::Tensor values = Dequantize(record, dtype);
                                              return transposed ? values.t().contiguous() : values;
                                            })};
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
