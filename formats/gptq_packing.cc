#include "formats/gptq_packing.h"

#include <ATen/ops/arange.h>

#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "formats/bit_packing.h"
#include "formats/packed_check.h"

namespace ptq {
namespace {

class GptqPacking final : public WeightPacking {
 public:
  GptqPacking(std::string format, GptqLayout layout)
      : format_(std::move(format)), layout_(layout) {}

  std::vector<std::string> Names(const PlannedModule& module) const override {
    std::vector<std::string> names = {module.module + ".qweight", module.module + ".qzeros",
                                      module.module + ".scales"};
    if (layout_.with_index) names.push_back(module.module + ".g_idx");
    return names;
  }

  std::string ScaleName(const std::string& module) const override { return module + ".scales"; }

  absl::StatusOr<std::vector<LazyTensor>> Pack(const PlannedModule& module,
                                               const AffineQuantizedTensor& record) const override {
    const int bits = record.bits;
    const int middle = 1 << (bits - 1);
    PTQ_ASSIGN_OR_RETURN(const at::Tensor scales, HalfScales(module, record, format_));
    PTQ_ASSIGN_OR_RETURN(const at::Tensor zeros,
                         ByteZeroPoints(module, record, layout_.zero_bias, format_));
    std::vector<LazyTensor> tensors =
        ToLazy({{module.module + ".qzeros",
                 PackRows(zeros.t().contiguous(), bits, middle - layout_.zero_bias)},
                {module.module + ".scales", scales.t().contiguous()}});
    if (layout_.with_index) {
      const int64_t columns = module.in_features;
      const int64_t group = GroupSizeOf(module);
      tensors.push_back(MakeLazy(module.module + ".g_idx", at::kInt, {columns}, [columns, group] {
        return at::arange(columns, at::kInt).div(group, "floor");
      }));
    }
    const at::Tensor codes = record.int_data;
    tensors.push_back(
        MakeLazy(module.module + ".qweight", at::kInt,
                 {PackedWords(module.in_features, bits), module.out_features},
                 [codes, bits, middle] { return PackRowsTransposed(codes, bits, middle); }));
    return tensors;
  }

  absl::Status Check(const PlannedModule&, const RecordView& record,
                     RecordCheck& file) const override {
    return CheckGptq(record, layout_.zero_bias, layout_.with_index, file);
  }

  absl::StatusOr<AffineQuantizedTensor> Unpack(const PlannedModule& module,
                                               const CheckpointReader& reader) const override {
    const int bits = module.scheme.bits;
    const int middle = 1 << (bits - 1);
    const int64_t group = GroupSizeOf(module);
    const int64_t groups = module.in_features / group;
    if (layout_.with_index) {
      PTQ_ASSIGN_OR_RETURN(const at::Tensor index, ReadAs(reader, module.module + ".g_idx",
                                                          at::kInt, {module.in_features}));
      if (!index.equal(at::arange(module.in_features, at::kInt).div(group, "floor"))) {
        return absl::FailedPreconditionError(absl::StrFormat(
            "tensor %s.g_idx: columns are not in the order of their groups (act-order), which no "
            "record holds",
            module.module));
      }
    }
    PTQ_ASSIGN_OR_RETURN(const at::Tensor weights,
                         ReadAs(reader, module.module + ".qweight", at::kInt,
                                {PackedWords(module.in_features, bits), module.out_features}));
    PTQ_ASSIGN_OR_RETURN(const at::Tensor packed,
                         ReadAs(reader, module.module + ".qzeros", at::kInt,
                                {groups, PackedWords(module.out_features, bits)}));
    PTQ_ASSIGN_OR_RETURN(const auto scale_type, ToScalarType(module.scale_dtype));
    PTQ_ASSIGN_OR_RETURN(
        const at::Tensor scales,
        ReadAs(reader, module.module + ".scales", scale_type, {groups, module.out_features}));
    // As stored, without the middle's shift: a byte that wraps is one that readers disagree on.
    at::Tensor zeros =
        UnpackRows(packed, module.out_features, bits, 0).view(at::kByte).to(at::kInt);
    if (layout_.zero_bias > 0 && zeros.eq(2 * middle - 1).any().item<bool>()) {
      return absl::FailedPreconditionError(absl::StrFormat(
          "tensor %s.qzeros holds %d, which is zero point 0 minus 1 wrapped around: readers "
          "disagree on what it means",
          module.module, 2 * middle - 1));
    }
    zeros = zeros.add(layout_.zero_bias - middle);
    return MakeRecord(module, UnpackRowsTransposed(weights, module.in_features, bits, middle),
                      scales.t().contiguous(), zeros.t().contiguous());
  }

 private:
  const std::string format_;
  const GptqLayout layout_;
};

}  // namespace

std::unique_ptr<WeightPacking> MakeGptqPacking(const std::string& format, GptqLayout layout) {
  return std::make_unique<GptqPacking>(format, layout);
}

}  // namespace ptq
