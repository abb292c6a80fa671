#include "formats/k_quant_record.h"

#include <ATen/ops/aminmax.h>
#include <ATen/ops/isfinite.h>

#include <array>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "formats/torchao_metadata.h"

namespace ptq {
namespace {

// One tensor of a record.
struct Field {
  const char* name;  // in the file
  at::Tensor SuperBlockScales::*tensor;
  int64_t columns;  // that share a value
  at::ScalarType dtype;
};

std::vector<Field> FieldsOf(KQuant type) {
  const KQuantTraits traits = TraitsOf(type);
  std::vector<Field> fields = {
      {"super_scale", &SuperBlockScales::scale, kSuperBlock, at::kHalf},
      {"sub_scale", &SuperBlockScales::sub_scale, traits.group_size, at::kChar}};
  if (traits.symmetric) return fields;
  fields.push_back({"super_minimum", &SuperBlockScales::minimum, kSuperBlock, at::kHalf});
  fields.push_back({"sub_minimum", &SuperBlockScales::sub_minimum, traits.group_size, at::kChar});
  return fields;
}

bool Fits(const at::Tensor& tensor, at::ScalarType dtype, std::array<int64_t, 2> shape) {
  return tensor.defined() && tensor.sizes() == at::IntArrayRef(shape) &&
         tensor.scalar_type() == dtype;
}

bool InRange(const at::Tensor& tensor, int64_t lowest, int64_t highest) {
  const auto [low, high] = at::aminmax(tensor);
  return low.item<int64_t>() >= lowest && high.item<int64_t>() <= highest;
}

}  // namespace

std::string KQuantMisfit(const PlannedModule& module, const AffineQuantizedTensor& record) {
  const QuantizationScheme& scheme = module.scheme;
  const KQuantTraits traits = TraitsOf(scheme.k_quant);
  if (record.k_quant != scheme.k_quant) {
    return absl::StrCat("it is no record of ", KQuantName(scheme.k_quant));
  }
  if (record.bits != scheme.bits || record.quant_min != scheme.quant_min() ||
      record.quant_max != scheme.quant_max() ||
      record.block_size != std::array<int64_t, 2>{1, scheme.group_size}) {
    return "bits, quant_min, quant_max or block_size are not those of the type";
  }
  if (record.scale.defined() || record.zero_point.defined()) {
    return "scale or zero_point is there, where super-blocks have all";
  }
  if (module.in_features % kSuperBlock != 0) return "its rows are no whole super-blocks";
  if (!Fits(record.int_data, at::kChar, {module.out_features, module.in_features})) {
    return "int_data is not int8 of the weight's shape";
  }
  if (!InRange(record.int_data, scheme.quant_min(), scheme.quant_max())) {
    return "int_data has codes beyond the type's";
  }
  if (traits.symmetric &&
      (record.super_blocks.minimum.defined() || record.super_blocks.sub_minimum.defined())) {
    return "a minimum in a symmetric type";
  }
  for (const Field& field : FieldsOf(scheme.k_quant)) {
    const at::Tensor& tensor = record.super_blocks.*field.tensor;
    if (!Fits(tensor, field.dtype, {module.out_features, module.in_features / field.columns})) {
      return absl::StrCat(field.name, " has another shape or dtype");
    }
    if (field.dtype == at::kHalf ? !at::isfinite(tensor).all().item<bool>()
                                 : !InRange(tensor, traits.lowest_scale, traits.highest_scale)) {
      return absl::StrCat(field.name, " has values that the type does not");
    }
  }
  return "";
}

std::vector<NamedTensor> KQuantTensors(const PlannedModule& module,
                                       const AffineQuantizedTensor& record) {
  std::vector<NamedTensor> tensors = {
      {TorchaoTensorName(module.module, "qdata"), record.int_data.cpu()}};
  for (const Field& field : FieldsOf(module.scheme.k_quant)) {
    tensors.push_back(
        {TorchaoTensorName(module.module, field.name), (record.super_blocks.*field.tensor).cpu()});
  }
  return tensors;
}

std::vector<std::string> KQuantTensorNames(const PlannedModule& module) {
  std::vector<std::string> names = {TorchaoTensorName(module.module, "qdata")};
  for (const Field& field : FieldsOf(module.scheme.k_quant)) {
    names.push_back(TorchaoTensorName(module.module, field.name));
  }
  return names;
}

absl::StatusOr<AffineQuantizedTensor> ReadKQuantRecord(const PlannedModule& module,
                                                       const TensorSource& read) {
  const QuantizationScheme& scheme = module.scheme;
  AffineQuantizedTensor record;
  PTQ_ASSIGN_OR_RETURN(record.int_data, read(TorchaoTensorName(module.module, "qdata"), at::kChar,
                                             {module.out_features, module.in_features}));
  for (const Field& field : FieldsOf(scheme.k_quant)) {
    PTQ_ASSIGN_OR_RETURN(record.super_blocks.*field.tensor,
                         read(TorchaoTensorName(module.module, field.name), field.dtype,
                              {module.out_features, module.in_features / field.columns}));
  }
  record.block_size = {1, scheme.group_size};
  record.quant_min = scheme.quant_min();
  record.quant_max = scheme.quant_max();
  record.mapping_type = scheme.symmetric ? MappingType::kSymmetric : MappingType::kAsymmetric;
  record.bits = scheme.bits;
  record.k_quant = scheme.k_quant;
  return record;
}

}  // namespace ptq
