#include "formats/awq_packing.h"

#include <utility>

#include "common/status_macros.h"
#include "formats/bit_packing.h"
#include "formats/packed_check.h"

namespace ptq {
namespace {

constexpr int kMiddle = 8;

class AwqPacking final : public WeightPacking {
 public:
  explicit AwqPacking(std::string format) : format_(std::move(format)) {}

  std::vector<std::string> Names(const PlannedModule& module) const override {
    return {module.module + ".qweight", module.module + ".qzeros", module.module + ".scales"};
  }

  std::string ScaleName(const std::string& module) const override { return module + ".scales"; }

  absl::StatusOr<std::vector<LazyTensor>> Pack(const PlannedModule& module,
                                               const AffineQuantizedTensor& record) const override {
    PTQ_ASSIGN_OR_RETURN(const at::Tensor scales, HalfScales(module, record, format_));
    PTQ_ASSIGN_OR_RETURN(const at::Tensor zeros, ByteZeroPoints(module, record, 0, format_));
    std::vector<LazyTensor> tensors =
        ToLazy({{module.module + ".qzeros", PackAwq(zeros, kMiddle)},
                {module.module + ".scales", scales.t().contiguous()}});
    const at::Tensor codes = record.int_data;
    tensors.push_back(MakeLazy(module.module + ".qweight", at::kInt,
                               {module.in_features, module.out_features / 8},
                               [codes] { return PackAwq(codes, kMiddle); }));
    return tensors;
  }

  absl::Status Check(const PlannedModule&, const RecordView& record,
                     RecordCheck& file) const override {
    return CheckAwq(record, file);
  }

  absl::StatusOr<AffineQuantizedTensor> Unpack(const PlannedModule& module,
                                               const CheckpointReader& reader) const override {
    PTQ_ASSIGN_OR_RETURN(const at::Tensor weights,
                         ReadAs(reader, module.module + ".qweight", at::kInt,
                                {module.in_features, module.out_features / 8}));
    PTQ_ASSIGN_OR_RETURN(const at::Tensor zeros, ReadZeros(module, reader));
    PTQ_ASSIGN_OR_RETURN(const auto scale_type, ToScalarType(module.scale_dtype));
    PTQ_ASSIGN_OR_RETURN(const at::Tensor scales,
                         ReadAs(reader, module.module + ".scales", scale_type,
                                {Groups(module), module.out_features}));
    return MakeRecord(module, UnpackAwq(weights, kMiddle), scales.t().contiguous(),
                      zeros.to(at::kInt));
  }

  absl::StatusOr<bool> HasMiddleZeros(const PlannedModule& module,
                                      const CheckpointReader& reader) const override {
    PTQ_ASSIGN_OR_RETURN(const at::Tensor zeros, ReadZeros(module, reader));
    return zeros.eq(0).all().item<bool>();
  }

 private:
  static int64_t Groups(const PlannedModule& module) {
    return module.in_features / GroupSizeOf(module);
  }
  // int8 [N, G].
  static absl::StatusOr<at::Tensor> ReadZeros(const PlannedModule& module,
                                              const CheckpointReader& reader) {
    PTQ_ASSIGN_OR_RETURN(const at::Tensor zeros, ReadAs(reader, module.module + ".qzeros", at::kInt,
                                                        {Groups(module), module.out_features / 8}));
    return UnpackAwq(zeros, kMiddle);
  }

  const std::string format_;
};

}  // namespace

std::unique_ptr<WeightPacking> MakeAwqPacking(const std::string& format) {
  return std::make_unique<AwqPacking>(format);
}

}  // namespace ptq
