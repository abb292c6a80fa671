#include "formats/record_file.h"

#include <ATen/ops/aminmax.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "algorithms/affine/affine_primitives.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "common/torch_status.h"
#include "formats/headers/safetensors_header.h"
#include "formats/k_quant_record.h"
#include "formats/torchao_metadata.h"

namespace ptq {
namespace {

constexpr int64_t kInt8Min = -128;
constexpr int64_t kInt8Max = 127;

// Of the dtypes that scales and weights have.
at::ScalarType ScalarTypeOf(DType dtype) {
  return dtype == DType::kF16 ? at::kHalf : dtype == DType::kBF16 ? at::kBFloat16 : at::kFloat;
}

bool IsInt8Class(const PlannedModule& module) {
  return TorchaoClassOf(module.scheme) == TorchaoClass::kInt8;
}

std::array<int64_t, 2> BlockSize(const PlannedModule& module) {
  return BlockSizeOf(module.scheme, module.out_features, module.in_features);
}

std::array<int64_t, 2> QParamShape(const PlannedModule& module) {
  const auto [rows, columns] = BlockSize(module);
  return {module.out_features / rows, module.in_features / columns};
}

// {lowest, highest} of an integer tensor that is not empty.
std::array<int64_t, 2> Range(const at::Tensor& tensor) {
  const auto [low, high] = at::aminmax(tensor);
  return {low.item<int64_t>(), high.item<int64_t>()};
}

// The first field of `record` that does not fit, as a sentence; empty if all do.
std::string Misfit(const PlannedModule& module, const AffineQuantizedTensor& record) {
  const QuantizationScheme& scheme = module.scheme;
  if (scheme.k_quant != KQuant::kNone) return KQuantMisfit(module, record);
  if (record.k_quant != KQuant::kNone) {
    return absl::StrCat("it is a record of ", KQuantName(record.k_quant));
  }
  const std::array<int64_t, 2> shape = {module.out_features, module.in_features};
  const auto wrong_shape = [](const at::Tensor& tensor, const std::array<int64_t, 2>& expected) {
    return !tensor.defined() || tensor.sizes() != at::IntArrayRef(expected);
  };
  if (record.zero_point_domain != ZeroPointDomain::kInt) {
    return "zero_point_domain is not INT";
  }
  if (record.bits != scheme.bits) {
    return absl::StrCat("bits: ", record.bits, ", planned were ", scheme.bits);
  }
  if (record.quant_min != scheme.quant_min() || record.quant_max != scheme.quant_max()) {
    return absl::StrCat("quant_min, quant_max: ", record.quant_min, ", ", record.quant_max);
  }
  if (record.block_size != BlockSize(module)) {
    return absl::StrCat("block_size: ", record.block_size[0], " x ", record.block_size[1]);
  }
  if (wrong_shape(record.int_data, shape) || record.int_data.scalar_type() != at::kChar) {
    return "int_data is not int8 of the weight's shape";
  }
  if (wrong_shape(record.scale, QParamShape(module)) ||
      record.scale.scalar_type() != ScalarTypeOf(module.scale_dtype)) {
    return absl::StrCat("scale has another shape or dtype than ",
                        c10::toString(ScalarTypeOf(module.scale_dtype)), " [",
                        QParamShape(module)[0], ", ", QParamShape(module)[1], "]");
  }
  if (wrong_shape(record.zero_point, QParamShape(module)) ||
      record.zero_point.scalar_type() != at::kInt) {
    return "zero_point is not int32 of the scale's shape";
  }
  const auto codes = Range(record.int_data);
  if (codes[0] < scheme.quant_min() || codes[1] > scheme.quant_max()) {
    return absl::StrCat("int_data spans ", codes[0], " to ", codes[1]);
  }
  const auto [smallest, largest] = at::aminmax(record.scale.abs());  // both NaN where one is
  if (!std::isfinite(largest.item<float>())) return "scale holds NaN or Inf";
  if (smallest.item<float>() == 0) return "scale holds 0";
  const auto zeros = Range(record.zero_point);
  if (zeros[0] < kInt8Min || zeros[1] > kInt8Max) {
    return absl::StrCat("zero_point spans ", zeros[0], " to ", zeros[1],
                        ", a byte holds -128 to 127");
  }
  if (scheme.symmetric && (zeros[0] != 0 || zeros[1] != 0)) {
    return "zero_point is not 0 in a symmetric scheme";
  }
  return "";
}

// Tensors of one file by name.
class RecordFile {
 public:
  static absl::StatusOr<RecordFile> Open(const std::string& path) {
    PTQ_ASSIGN_OR_RETURN(auto file, ReadableFile::Open(path));
    auto header = ReadSafetensorsHeader(file);
    if (!header.ok()) return absl::DataLossError(Message(header.status()));
    return RecordFile(std::move(file), *std::move(header));
  }

  absl::StatusOr<at::Tensor> Read(const std::string& name, at::ScalarType dtype,
                                  const std::array<int64_t, 2>& shape) const {
    const auto entry = tensors_.find(name);
    if (entry == tensors_.end()) return Damaged(name, "missing");
    const TensorInfo& info = header_.tensors[entry->second];
    if (info.dtype != FromScalarType(dtype) || at::IntArrayRef(info.shape) != shape) {
      return Damaged(name, "another dtype or shape than planned");
    }
    at::Tensor tensor = at::empty(info.shape, at::TensorOptions().dtype(dtype));
    PTQ_RETURN_IF_ERROR(file_.ReadAt(header_.data_offset + info.begin, tensor.data_ptr(),
                                     static_cast<size_t>(info.bytes())));
    return tensor;
  }

  // The metadata's description of `module`'s weight agrees with what was planned.
  absl::Status CheckDescription(const PlannedModule& module) const {
    const std::string name = module.module + ".weight";
    const auto text = header_.metadata.find(name);
    if (text == header_.metadata.end()) return Damaged(name, "no metadata");
    const auto description = ParseTorchaoTensor(text->second);
    if (!description.ok()) return Damaged(name, Message(description.status()));
    if (description->tensor_class != TorchaoClassOf(module.scheme) ||
        description->k_quant != module.scheme.k_quant || description->bits != module.scheme.bits ||
        description->block_size != BlockSize(module)) {
      return Damaged(name, "quantized by another scheme than planned");
    }
    return absl::OkStatus();
  }

  static absl::Status Damaged(const std::string& name, const std::string& what) {
    return absl::DataLossError(absl::StrCat("tensor ", name, ": ", what));
  }

 private:
  RecordFile(ReadableFile file, SafetensorsHeader header)
      : file_(std::move(file)), header_(std::move(header)) {
    for (size_t i = 0; i < header_.tensors.size(); ++i) tensors_[header_.tensors[i].name] = i;
  }
  ReadableFile file_;
  SafetensorsHeader header_;
  std::map<std::string, size_t> tensors_;
};

}  // namespace

absl::StatusOr<AffineQuantizedTensor> ReadRecord(const PlannedModule& module,
                                                 const TensorSource& read) {
  const auto damaged = [](const std::string& tensor, const std::string& what) {
    return absl::DataLossError(absl::StrCat("tensor ", tensor, ": ", what));
  };
  const QuantizationScheme& scheme = module.scheme;
  const auto name = [&module](const char* data) { return TorchaoTensorName(module.module, data); };
  if (scheme.k_quant != KQuant::kNone) {
    PTQ_ASSIGN_OR_RETURN(AffineQuantizedTensor record, ReadKQuantRecord(module, read));
    record.original_dtype = ScalarTypeOf(module.original_dtype);
    const std::string misfit = Misfit(module, record);
    if (!misfit.empty()) return damaged(module.module + ".weight", misfit);
    return record;
  }
  AffineQuantizedTensor record;
  PTQ_ASSIGN_OR_RETURN(record.int_data,
                       read(name("qdata"), at::kChar, {module.out_features, module.in_features}));
  const at::ScalarType scale_dtype = ScalarTypeOf(module.scale_dtype);
  const at::ScalarType stored = IsInt8Class(module) ? at::kFloat : scale_dtype;
  PTQ_ASSIGN_OR_RETURN(const at::Tensor scale, read(name("scale"), stored, QParamShape(module)));
  record.scale = scale.to(scale_dtype);
  if (!record.scale.to(stored).equal(scale)) {
    return damaged(name("scale"), "more digits than the record's dtype has");
  }
  PTQ_ASSIGN_OR_RETURN(const at::Tensor zero_point,
                       read(name("zero_point"), at::kChar, QParamShape(module)));
  record.zero_point = zero_point.to(at::kInt);
  record.block_size = BlockSize(module);
  record.quant_min = scheme.quant_min();
  record.quant_max = scheme.quant_max();
  record.mapping_type = scheme.symmetric ? MappingType::kSymmetric : MappingType::kAsymmetric;
  record.bits = scheme.bits;
  record.original_dtype = ScalarTypeOf(module.original_dtype);
  const std::string misfit = Misfit(module, record);
  if (!misfit.empty()) return damaged(module.module + ".weight", misfit);
  return record;
}

absl::Status ValidateRecord(const PlannedModule& module, const AffineQuantizedTensor& record) {
  return CatchTorchErrors(module.module, [&]() -> absl::Status {
    const std::string misfit = Misfit(module, record);
    if (misfit.empty()) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("tensor ", module.module, ".weight can't be written: ", misfit));
  });
}

std::vector<NamedTensor> RecordTensors(const PlannedModule& module,
                                       const AffineQuantizedTensor& record) {
  if (record.k_quant != KQuant::kNone) return KQuantTensors(module, record);
  at::Tensor scale = record.scale.cpu();
  if (IsInt8Class(module)) scale = scale.to(at::kFloat);
  return {{TorchaoTensorName(module.module, "qdata"), record.int_data.cpu()},
          {TorchaoTensorName(module.module, "scale"), scale},
          {TorchaoTensorName(module.module, "zero_point"), record.zero_point.cpu().to(at::kChar)}};
}

std::vector<std::string> RecordTensorNames(const PlannedModule& module) {
  if (module.scheme.k_quant != KQuant::kNone) return KQuantTensorNames(module);
  return {TorchaoTensorName(module.module, "qdata"), TorchaoTensorName(module.module, "scale"),
          TorchaoTensorName(module.module, "zero_point")};
}

absl::StatusOr<std::vector<QuantizedModule>> ReadRecords(
    const std::string& path, const std::vector<PlannedModule>& modules) {
  return CatchTorchErrors(path, [&]() -> absl::StatusOr<std::vector<QuantizedModule>> {
    PTQ_ASSIGN_OR_RETURN(const auto file, RecordFile::Open(path));
    const TensorSource read = [&file](const std::string& name, at::ScalarType dtype,
                                      const std::array<int64_t, 2>& shape) {
      return file.Read(name, dtype, shape);
    };
    const auto read_module =
        [&](const PlannedModule& module) -> absl::StatusOr<AffineQuantizedTensor> {
      PTQ_RETURN_IF_ERROR(file.CheckDescription(module));
      return ReadRecord(module, read);
    };
    std::vector<QuantizedModule> records;
    for (const PlannedModule& module : modules) {
      auto weight = read_module(module);
      if (!weight.ok()) return Annotate(weight.status(), path);
      records.push_back({module.module, *std::move(weight)});
    }
    return records;
  });
}

}  // namespace ptq
