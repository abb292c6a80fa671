#include "formats/safetensors_format.h"

#include <algorithm>
#include <atomic>
#include <future>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "common/torch_status.h"
#include "formats/headers/format_rules.h"
#include "formats/headers/quantized_folder.h"
#include "formats/headers/tensor_table.h"
#include "formats/record_file.h"

namespace ptq {

QuantizationScheme CommonScheme(const std::vector<PlannedModule>& modules) {
  QuantizationScheme common;
  int64_t most = 0;
  for (const PlannedModule& candidate : modules) {
    if (most > 0 && candidate.scheme == common) continue;
    const int64_t count = std::count_if(
        modules.begin(), modules.end(),
        [&](const PlannedModule& module) { return module.scheme == candidate.scheme; });
    if (count > most) {
      most = count;
      common = candidate.scheme;
    }
    if (2 * most >= static_cast<int64_t>(modules.size())) break;
  }
  return common;
}

std::vector<std::string> PlainLinears(const ExportPlan& plan) {
  std::set<std::string> quantized;
  for (const PlannedModule& module : plan.modules) quantized.insert(module.module);
  std::vector<std::string> plain;
  for (const TableTensor& tensor : BuildTensorTable(plan.source.config)) {
    // Matrices of another role, a router's, are linear layers to loaders too.
    if (tensor.block >= 0 && tensor.shape.size() == 2 && absl::EndsWith(tensor.name, ".weight") &&
        !quantized.contains(tensor.module)) {
      plain.push_back(tensor.module);
    }
  }
  return plain;
}

std::vector<std::string> PlainHead(const ExportPlan& plan) {
  for (const PlannedModule& module : plan.modules) {
    if (module.place == ModulePlace::kHead) return {};
  }
  std::vector<std::string> names = {"lm_head"};
  for (const TableTensor& tensor : BuildTensorTable(plan.source.config)) {
    if (tensor.part == TensorPart::kHead && tensor.module != names[0]) {
      names.push_back(tensor.module);
    }
  }
  return names;
}

// A folder of the format: reads a block's records when they are asked for.
class SafetensorsFormat::Opened final : public QuantizedCheckpoint {
 public:
  static absl::StatusOr<std::unique_ptr<QuantizedCheckpoint>> Open(
      QuantizedFolder folder, std::unique_ptr<Reading> reading);
  const ExportPlan& plan() const override { return plan_; }
  const CheckpointReader& plain() const override { return *reader_; }
  absl::StatusOr<std::vector<QuantizedModule>> ReadBlock(int64_t block) const override;

 private:
  absl::Status AddModule(const TableTensor& weight);

  ExportPlan plan_;
  std::vector<std::vector<PlannedModule>> blocks_;
  std::unique_ptr<Reading> reading_;
  std::unique_ptr<SafetensorsCheckpointReader> reader_;
};

absl::StatusOr<std::unique_ptr<QuantizedCheckpoint>> SafetensorsFormat::Opened::Open(
    QuantizedFolder folder, std::unique_ptr<Reading> reading) {
  auto opened = std::make_unique<Opened>();
  opened->plan_.source = std::move(folder.model);
  opened->reading_ = std::move(reading);
  const CheckpointInspection& model = opened->plan_.source;
  PTQ_ASSIGN_OR_RETURN(opened->reader_, SafetensorsCheckpointReader::Open(model.index));
  // With what is before and after the blocks.
  opened->blocks_.resize(static_cast<size_t>(model.config.num_hidden_layers) + 2);
  for (const TableTensor& tensor : BuildTensorTable(model.config)) {
    if (!PlaceOf(tensor, model.config.tie_word_embeddings)) continue;
    PTQ_RETURN_IF_ERROR(CatchTorchErrors(tensor.module, [&] { return opened->AddModule(tensor); }));
  }
  opened->plan_.default_scheme = CommonScheme(opened->plan_.modules);
  std::set<std::string> quantized;
  std::set<std::string> parts;
  for (const PlannedModule& module : opened->plan_.modules) {
    quantized.insert(module.module + ".weight");
    for (std::string& name : opened->reading_->packing().Names(module)) {
      parts.insert(std::move(name));
    }
  }
  PTQ_RETURN_IF_ERROR(CheckPlainTensors(model, quantized, parts));
  return opened;
}

absl::Status SafetensorsFormat::Opened::AddModule(const TableTensor& weight) {
  const CheckpointIndex& index = plan_.source.index;
  const ModelConfig& model = plan_.source.config;
  if (index.Find(weight.name) != nullptr) {
    if (weight.block >= 0) plan_.skipped.push_back(weight.module);
    return absl::OkStatus();
  }
  PTQ_ASSIGN_OR_RETURN(const auto scheme, reading_->SchemeOf(weight.module));
  if (!scheme) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", weight.name,
        " is missing, and quantization_config says that this module is not quantized"));
  }
  PlannedModule module = {weight.module, weight.shape[0], weight.shape[1], *scheme,
                          CheckpointDType(plan_.source)};
  const WeightPacking& packing = reading_->packing();
  for (const std::string& name : packing.Names(module)) {
    if (index.Find(name) != nullptr) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", name, " is missing, though quantization_config says that ",
                     module.module, " is quantized"));
  }
  if (scheme->bits < 2 || scheme->bits > 8) {
    return absl::FailedPreconditionError(
        absl::StrCat(module.module, ": ", scheme->bits, " bits; records hold 2 to 8"));
  }
  if (scheme->group_size > 0 && module.in_features % scheme->group_size != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(module.module, ": groups of ", scheme->group_size, " do not divide its ",
                     module.in_features, " inputs, which no record can hold"));
  }
  const DType scale = index.Find(packing.ScaleName(module.module))->info.dtype;
  if (scale != DType::kF32 && scale != DType::kF16 && scale != DType::kBF16) {
    return absl::FailedPreconditionError(absl::StrCat("tensor ", packing.ScaleName(module.module),
                                                      ": scales of dtype ", DTypeName(scale),
                                                      "; records hold F32, F16 and BF16"));
  }
  module.scale_dtype = reading_->ScaleDType(scale);
  module.place = *PlaceOf(weight, model.tie_word_embeddings);
  if (!reading_->knows_symmetry()) {
    module.scheme.symmetric = false;
    PTQ_ASSIGN_OR_RETURN(module.scheme.symmetric, packing.HasMiddleZeros(module, *reader_));
  }
  blocks_[static_cast<size_t>(BlockOf(weight, model.num_hidden_layers) + 1)].push_back(module);
  plan_.modules.push_back(std::move(module));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<QuantizedModule>> SafetensorsFormat::Opened::ReadBlock(
    int64_t block) const {
  if (block < kEmbeddingBlock || block + 1 >= static_cast<int64_t>(blocks_.size())) {
    return absl::InvalidArgumentError(absl::StrCat("there is no block ", block));
  }
  std::vector<QuantizedModule> records;
  for (const PlannedModule& module : blocks_[static_cast<size_t>(block + 1)]) {
    auto record = CatchTorchErrors(module.module, [&]() -> absl::StatusOr<AffineQuantizedTensor> {
      PTQ_ASSIGN_OR_RETURN(auto unpacked, reading_->packing().Unpack(module, *reader_));
      PTQ_RETURN_IF_ERROR(ValidateRecord(module, unpacked));
      return unpacked;
    });
    if (!record.ok()) return Annotate(record.status(), plan_.source.index.folder());
    records.push_back({module.module, *std::move(record)});
  }
  return records;
}

absl::Status SafetensorsFormat::CheckPlan(const ExportPlan& plan) const {
  return CheckFormatHolds(name(), plan.modules);
}

std::map<std::string, std::string> SafetensorsFormat::MetadataFor(const ExportPlan&) const {
  return {{"format", "pt"}};
}

absl::StatusOr<std::unique_ptr<SafetensorsFormat::Reading>> SafetensorsFormat::Read(
    const Json&, const CheckpointIndex&) const {
  return absl::UnimplementedError("folders of format " + name() + " can't be read, only written");
}

absl::StatusOr<FileDigests> SafetensorsFormat::Write(const QuantizedCheckpoint& checkpoint,
                                                     const std::string& folder,
                                                     const CancellationToken& cancel) const {
  const ExportPlan& plan = checkpoint.plan();
  PTQ_RETURN_IF_ERROR(CheckPlan(plan));
  const std::unique_ptr<WeightPacking> packing = PackingFor(plan);
  PTQ_ASSIGN_OR_RETURN(const CheckpointFolder out,
                       CheckpointFolder::Create(plan, folder, MetadataFor(plan),
                                                [&packing](const PlannedModule& module) {
                                                  return packing->Names(module);
                                                }));
  const auto write_block = [&](int64_t block) -> absl::StatusOr<std::string> {
    const std::vector<PlannedModule>& modules = out.modules(block);
    if (modules.empty()) return out.WriteShard(block + 1, {}, checkpoint.plain(), {}, cancel);
    PTQ_ASSIGN_OR_RETURN(const auto records, checkpoint.ReadBlock(block));
    PTQ_ASSIGN_OR_RETURN(const auto valid, out.ValidModules(block, records));
    std::vector<LazyTensor> tensors;
    for (size_t i = 0; i < valid.size(); ++i) {
      PTQ_RETURN_IF_ERROR(cancel.Check());
      PTQ_ASSIGN_OR_RETURN(auto packed, packing->Pack(modules[i], valid[i].weight));
      for (LazyTensor& tensor : packed) tensors.push_back(std::move(tensor));
    }
    return out.WriteShard(
        block + 1, std::move(tensors), checkpoint.plain(),
        [&](RecordCheck& file) -> absl::Status {
          for (size_t i = 0; i < valid.size(); ++i) {
            PTQ_RETURN_IF_ERROR(cancel.Check());
            const RecordView view = ViewOf(modules[i], valid[i].weight);
            PTQ_RETURN_IF_ERROR(packing->Check(modules[i], view, file));
          }
          return absl::OkStatus();
        },
        cancel);
  };
  // Two lanes, which mostly are at different steps of their shards.
  std::vector<std::string> written(static_cast<size_t>(out.shard_count()));
  std::atomic<int64_t> next{0};
  const auto lane = [&]() -> absl::Status {
    for (int64_t shard = next++; shard < out.shard_count(); shard = next++) {
      auto digest = CatchTorchErrors(absl::StrCat(name(), " output"), [&] {
        const absl::Status cancelled = cancel.Check();
        return cancelled.ok() ? write_block(shard - 1) : absl::StatusOr<std::string>(cancelled);
      });
      if (!digest.ok()) {
        next = out.shard_count();
        return digest.status();
      }
      written[static_cast<size_t>(shard)] = *std::move(digest);
    }
    return absl::OkStatus();
  };
  std::future<absl::Status> other = std::async(std::launch::async, lane);
  absl::Status status = lane();
  status.Update(other.get());
  PTQ_RETURN_IF_ERROR(status);
  FileDigests digests;
  for (int64_t shard = 0; shard < out.shard_count(); ++shard) {
    digests[out.ShardName(shard)] = std::move(written[static_cast<size_t>(shard)]);
  }
  PTQ_RETURN_IF_ERROR(out.Finalize(ConfigFor(plan)));
  return digests;
}

absl::StatusOr<std::unique_ptr<QuantizedCheckpoint>> SafetensorsFormat::Open(
    const std::string& folder) const {
  PTQ_ASSIGN_OR_RETURN(QuantizedFolder quantized, InspectQuantizedFolder(folder));
  auto reading = Read(quantized.quantization_config, quantized.model.index);
  if (!reading.ok()) return Annotate(reading.status(), folder);
  auto opened = Opened::Open(std::move(quantized), *std::move(reading));
  if (!opened.ok()) return Annotate(opened.status(), folder);
  return opened;
}

}  // namespace ptq
