#include "formats/weight_packing.h"

#include <ATen/ops/zeros.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "algorithms/affine/affine_primitives.h"
#include "common/status_macros.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

// [row, column] of the first element that is true in a tensor of two dimensions that has one.
std::array<int64_t, 2> FirstTrue(const at::Tensor& tensor) {
  const int64_t index = tensor.flatten().to(at::kByte).argmax().item<int64_t>();
  return {index / tensor.size(1), index % tensor.size(1)};
}

at::Tensor ByRow(const at::Tensor& qparams, const AffineQuantizedTensor& record) {
  return qparams.expand({record.int_data.size(0), qparams.size(1)}).contiguous();
}

}  // namespace

absl::StatusOr<bool> WeightPacking::HasMiddleZeros(const PlannedModule& module,
                                                   const CheckpointReader& reader) const {
  PTQ_ASSIGN_OR_RETURN(const AffineQuantizedTensor record, Unpack(module, reader));
  return record.zero_point.eq(0).all().item<bool>();
}

LazyTensor MakeLazy(std::string name, at::ScalarType dtype, std::vector<int64_t> shape,
                    std::function<at::Tensor()> make) {
  LazyTensor tensor;
  tensor.name = std::move(name);
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  tensor.load = [make = std::move(make)]() -> absl::StatusOr<at::Tensor> { return make(); };
  return tensor;
}

int64_t GroupSizeOf(const PlannedModule& module) {
  return module.scheme.group_size > 0 ? module.scheme.group_size : module.in_features;
}

at::Tensor RowScales(const AffineQuantizedTensor& record) { return ByRow(record.scale, record); }

at::Tensor RowZeroPoints(const AffineQuantizedTensor& record) {
  return ByRow(record.zero_point, record);
}

absl::StatusOr<at::Tensor> HalfScales(const PlannedModule& module,
                                      const AffineQuantizedTensor& record,
                                      const std::string& format) {
  const at::Tensor scale = RowScales(record);
  if (scale.scalar_type() == at::kHalf) return scale;
  const at::Tensor half = scale.to(at::kHalf);
  const at::Tensor wrong = half.to(scale.scalar_type()).ne(scale);
  if (!wrong.any().item<bool>()) return half;
  const auto [row, group] = FirstTrue(wrong);
  return absl::FailedPreconditionError(absl::StrFormat(
      "%s can't hold %s.weight: its scale %.9g at [%d, %d] is no float16; use compressed-tensors "
      "or affine",
      format, module.module, scale[row][group].item<double>(), row, group));
}

absl::StatusOr<at::Tensor> ByteZeroPoints(const PlannedModule& module,
                                          const AffineQuantizedTensor& record, int lowest,
                                          const std::string& format) {
  const at::Tensor zeros = RowZeroPoints(record);
  const int middle = 1 << (record.bits - 1);
  const int highest = 2 * middle - 1;
  const at::Tensor wrong = zeros.lt(lowest - middle).logical_or(zeros.gt(highest - middle));
  if (!wrong.any().item<bool>()) return zeros.to(at::kChar);
  const auto [row, group] = FirstTrue(wrong);
  return absl::FailedPreconditionError(absl::StrFormat(
      "%s can't hold %s.weight: its zero point at [%d, %d] is %d, and %d bits of this format hold "
      "%d to %d; use %s",
      format, module.module, row, group, zeros[row][group].item<int64_t>() + middle, record.bits,
      lowest, highest, lowest > 0 ? "awq, compressed-tensors or affine" : "affine"));
}

absl::StatusOr<at::Tensor> ReadAs(const CheckpointReader& reader, const std::string& name,
                                  at::ScalarType dtype, const std::vector<int64_t>& shape) {
  PTQ_ASSIGN_OR_RETURN(const StoredTensor stored, reader.Describe(name));
  if (stored.dtype != dtype || stored.shape != shape) {
    return absl::DataLossError(
        absl::StrFormat("tensor %s is %s %s, and by config.json it should be %s %s", name,
                        c10::toString(stored.dtype), ShapeToString(stored.shape),
                        c10::toString(dtype), ShapeToString(shape)));
  }
  return reader.Read(name);
}

AffineQuantizedTensor MakeRecord(const PlannedModule& module, at::Tensor codes, at::Tensor scale,
                                 at::Tensor zero_point) {
  const QuantizationScheme& scheme = module.scheme;
  AffineQuantizedTensor record;
  record.int_data = std::move(codes);
  record.scale = std::move(scale);
  record.zero_point = std::move(zero_point);
  record.block_size = BlockSizeOf(scheme, module.out_features, module.in_features);
  record.quant_min = scheme.quant_min();
  record.quant_max = scheme.quant_max();
  record.mapping_type = scheme.symmetric ? MappingType::kSymmetric : MappingType::kAsymmetric;
  record.bits = scheme.bits;
  const auto dtype = ToScalarType(module.original_dtype);
  record.original_dtype = dtype.ok() ? *dtype : at::kFloat;
  return record;
}

}  // namespace ptq
