// The affine format: torchao's safetensors layout, which transformers loads.
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/affine_metadata.h"
#include "formats/headers/safetensors_header.h"
#include "formats/headers/tensor_table.h"
#include "formats/record_file.h"
#include "formats/safetensors_format.h"
#include "formats/torchao_metadata.h"

namespace ptq {
namespace {

constexpr char kCodes[] = "._weight_qdata";

// What torchao's class of a tensor stands for; nothing if a record has no such blocks.
std::optional<int64_t> GroupSize(const std::array<int64_t, 2>& block_size, int64_t rows,
                                 int64_t columns) {
  if (block_size == std::array<int64_t, 2>{rows, columns}) return QuantizationScheme::kPerTensor;
  if (block_size[0] != 1) return std::nullopt;
  return block_size[1] == columns ? QuantizationScheme::kPerChannel : block_size[1];
}

class AffinePacking final : public WeightPacking {
 public:
  explicit AffinePacking(DType dtype) : dtype_(dtype) {}

  std::vector<std::string> Names(const PlannedModule& module) const override {
    return RecordTensorNames(module);
  }
  std::string ScaleName(const std::string& module) const override {
    return TorchaoTensorName(module, "scale");
  }
  absl::StatusOr<std::vector<LazyTensor>> Pack(const PlannedModule& module,
                                               const AffineQuantizedTensor& record) const override {
    return ToLazy(RecordTensors(module, record));
  }
  absl::Status Check(const PlannedModule&, const RecordView& record,
                     RecordCheck& file) const override {
    return file.CheckAffine(record, dtype_);
  }
  absl::StatusOr<AffineQuantizedTensor> Unpack(const PlannedModule& module,
                                               const CheckpointReader& reader) const override {
    return ReadRecord(module, [&reader](const std::string& name, at::ScalarType dtype,
                                        const std::array<int64_t, 2>& shape) {
      return ReadAs(reader, name, dtype, {shape.begin(), shape.end()});
    });
  }
  absl::StatusOr<bool> HasMiddleZeros(const PlannedModule& module,
                                      const CheckpointReader& reader) const override {
    PTQ_ASSIGN_OR_RETURN(const at::Tensor zeros,
                         reader.Read(TorchaoTensorName(module.module, "zero_point")));
    return zeros.eq(0).all().item<bool>();
  }

 private:
  const DType dtype_;  // that weights decode to
};

class AffineFormat final : public SafetensorsFormat {
 public:
  std::string name() const override { return "affine"; }

 protected:
  std::unique_ptr<WeightPacking> PackingFor(const ExportPlan& plan) const override {
    return std::make_unique<AffinePacking>(CheckpointDType(plan.source));
  }
  FolderConfig ConfigFor(const ExportPlan& plan) const override { return AffineConfig(plan); }
  std::map<std::string, std::string> MetadataFor(const ExportPlan& plan) const override {
    return AffineMetadata(plan);
  }

  class TorchaoReading final : public Reading {
   public:
    static absl::StatusOr<std::unique_ptr<Reading>> Create(const Json& config,
                                                           const CheckpointIndex& index) {
      auto reading = std::make_unique<TorchaoReading>();
      const Json::json_pointer group("/quant_type/default/_data/granularity/_data/group_size");
      if (config.contains(group) && config.at(group).is_number_integer()) {
        reading->group_size_ = config.at(group).get<int64_t>();
      }
      for (const std::string& name : index.files()) {
        PTQ_ASSIGN_OR_RETURN(const auto file, ReadableFile::Open(JoinPath(index.folder(), name)));
        PTQ_ASSIGN_OR_RETURN(const auto header, ReadSafetensorsHeader(file));
        for (const auto& [key, value] : header.metadata) reading->metadata_[key] = value;
      }
      const Json::json_pointer mapping("/quant_type/default/_data/mapping_type/_data");
      reading->asymmetric_ = config.contains(mapping) && config.at(mapping) == "ASYMMETRIC";
      if (const auto own = reading->metadata_.find("ptqd"); own != reading->metadata_.end()) {
        PTQ_ASSIGN_OR_RETURN(const Json json, ParseJson(own->second));
        PTQ_ASSIGN_OR_RETURN(const std::string rule, JsonString(json, "scale_rule"));
        reading->half_scales_ = rule == "full-range";
      }
      for (const auto& [name, tensor] : index.tensors()) {
        if (absl::EndsWith(name, kCodes)) reading->shapes_[name] = tensor.info.shape;
      }
      return reading;
    }

    const WeightPacking& packing() const override { return packing_; }
    // Where the config says symmetric, single layers may be otherwise.
    bool knows_symmetry() const override { return asymmetric_; }
    DType ScaleDType(DType stored) const override { return half_scales_ ? DType::kF16 : stored; }

    absl::StatusOr<std::optional<QuantizationScheme>> SchemeOf(
        const std::string& module) const override {
      const auto text = metadata_.find(module + ".weight");
      if (text == metadata_.end()) return std::nullopt;
      const auto entry = ParseTorchaoTensor(text->second);
      if (!entry.ok()) return Annotate(entry.status(), module);
      const auto shape = shapes_.find(TorchaoTensorName(module, "qdata"));
      if (shape == shapes_.end() || shape->second.size() != 2) return std::nullopt;
      const auto group = GroupSize(entry->block_size, shape->second[0], shape->second[1]);
      if (!group) {
        return absl::FailedPreconditionError(absl::StrCat(
            module, ": blocks of ", entry->block_size[0], " x ", entry->block_size[1],
            " share a scale; records hold groups within a row, rows and whole tensors"));
      }
      QuantizationScheme scheme = {
          .bits = entry->bits, .group_size = *group, .symmetric = !asymmetric_};
      // A group as wide as the row, where the config speaks of groups.
      if (shape->second[1] == group_size_ && scheme.group_size == QuantizationScheme::kPerChannel &&
          entry->tensor_class != TorchaoClass::kInt8) {
        scheme.group_size = group_size_;
      }
      if (!half_scales_) scheme.scale_rule = ScaleRule::kTorchao;
      return scheme;
    }

   private:
    std::map<std::string, std::string> metadata_;
    std::map<std::string, std::vector<int64_t>> shapes_;  // of codes
    AffinePacking packing_{DType::kF32};                  // which only Check asks for
    bool half_scales_ = false;
    bool asymmetric_ = false;
    int64_t group_size_ = 0;  // of the config; 0: it has none
  };

  absl::StatusOr<std::unique_ptr<Reading>> Read(const Json& quantization_config,
                                                const CheckpointIndex& index) const override {
    return TorchaoReading::Create(quantization_config, index);
  }
};

}  // namespace

std::map<std::string, std::string> AffineMetadata(const ExportPlan& plan) {
  std::map<std::string, const PlannedModule*> planned;
  for (const PlannedModule& module : plan.modules) planned[module.module + ".weight"] = &module;
  std::vector<TorchaoParameter> parameters;
  for (const TableTensor& tensor : BuildTensorTable(plan.source.config)) {
    TorchaoParameter& parameter = parameters.emplace_back();
    parameter.name = tensor.name;
    const auto module = planned.find(tensor.name);
    if (module == planned.end()) continue;
    parameter.quantized = true;
    parameter.scheme = module->second->scheme;
    parameter.out_features = module->second->out_features;
    parameter.in_features = module->second->in_features;
  }
  return TorchaoMetadata(parameters, CheckpointDType(plan.source), plan.default_scheme.scale_rule);
}

FolderConfig AffineConfig(const ExportPlan& plan) {
  std::vector<std::string> skipped = PlainHead(plan);
  skipped.insert(skipped.end(), plan.skipped.begin(), plan.skipped.end());
  const bool embedding = std::any_of(
      plan.modules.begin(), plan.modules.end(),
      [](const PlannedModule& module) { return module.place == ModulePlace::kEmbedding; });
  return {.quantization = TorchaoQuantizationConfig(plan.default_scheme, skipped, embedding),
          .dtype = std::nullopt,
          .files = {}};
}

std::unique_ptr<CheckpointFormat> MakeAffineFormat() { return std::make_unique<AffineFormat>(); }

}  // namespace ptq
