#include "formats/checkpoint_folder.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "common/torch_status.h"
#include "formats/headers/model_files.h"
#include "formats/headers/safetensors_header.h"
#include "formats/record_file.h"

namespace ptq {
namespace {

constexpr char kConfigName[] = "config.json";
constexpr char kIndexName[] = "model.safetensors.index.json";

// The shard of a table row: embedding 0, blocks 1..L, and L+1 for what comes after them.
size_t ShardOf(const TableTensor& tensor, int64_t blocks) {
  return static_cast<size_t>(BlockOf(tensor, blocks) + 1);
}

// Files in which other programs repeat a quantization_config.
bool IsQuantizationConfig(const std::string& name) {
  for (const char* known : {"quantize_config.json", "quant_config.json", "quantization_config.json",
                            "hf_quant_config.json"}) {
    if (name == known) return true;
  }
  return false;
}

// config.json's name of a dtype that models are stored in.
const char* ConfigName(DType dtype) {
  return dtype == DType::kF16 ? "float16" : dtype == DType::kBF16 ? "bfloat16" : "float32";
}

absl::Status CheckPlanned(const PlannedModule& module, const TableTensor* weight) {
  if (weight == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "module ", module.module,
        " is neither a linear layer of a decoder block nor the model's embedding or head"));
  }
  const std::vector<int64_t> shape = {module.out_features, module.in_features};
  const int64_t group = module.scheme.group_size;
  if (weight->shape != shape || (group > 0 && module.in_features % group != 0)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("module %s: planned as [%d, %d] in groups of %d", module.module,
                        module.out_features, module.in_features, group));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CheckpointFolder> CheckpointFolder::Create(
    ExportPlan plan, std::string folder, std::map<std::string, std::string> metadata,
    StoredNames stored_names) {
  const ModelConfig& config = plan.source.config;
  const std::vector<TableTensor> table = BuildTensorTable(config);
  std::map<std::string, const TableTensor*> weights;  // by module
  for (const TableTensor& tensor : table) {
    if (PlaceOf(tensor, config.tie_word_embeddings)) weights[tensor.module] = &tensor;
  }

  CheckpointFolder result;
  result.shards_.resize(static_cast<size_t>(config.num_hidden_layers) + 2);
  result.modules_.resize(result.shards_.size());
  std::set<std::string> quantized;
  for (const PlannedModule& module : plan.modules) {
    const auto weight = weights.find(module.module);
    PTQ_RETURN_IF_ERROR(CheckPlanned(module, weight == weights.end() ? nullptr : weight->second));
    if (!quantized.insert(module.module + ".weight").second) {
      return absl::InvalidArgumentError(absl::StrCat("module ", module.module, " planned twice"));
    }
    const size_t shard = ShardOf(*weight->second, config.num_hidden_layers);
    result.modules_[shard].push_back(module);
    for (std::string& name : stored_names(module)) {
      result.shards_[shard].stored.push_back(std::move(name));
    }
  }
  for (const TableTensor& tensor : table) {
    if (quantized.contains(tensor.name)) continue;
    if (plan.source.index.Find(tensor.name) == nullptr) {
      return absl::NotFoundError(absl::StrCat("tensor ", tensor.name, " is not in the checkpoint"));
    }
    result.shards_[ShardOf(tensor, config.num_hidden_layers)].plain.push_back(tensor.name);
  }
  result.plan_ = std::move(plan);
  result.folder_ = std::move(folder);
  result.metadata_ = std::move(metadata);
  return result;
}

std::string CheckpointFolder::ShardName(int64_t index) const {
  return absl::StrFormat("model-%05d-of-%05d.safetensors", index + 1, shard_count());
}

std::string CheckpointFolder::ShardPath(int64_t index) const {
  return JoinPath(folder_, ShardName(index));
}

absl::StatusOr<std::vector<QuantizedModule>> CheckpointFolder::ValidModules(
    int64_t block, const std::vector<QuantizedModule>& modules) const {
  if (block < kEmbeddingBlock || block > block_count()) {
    return absl::InvalidArgumentError(absl::StrCat("there is no block ", block));
  }
  std::map<std::string, const QuantizedModule*> given;
  for (const QuantizedModule& module : modules) given[module.module] = &module;
  if (given.size() != modules.size() || given.size() != this->modules(block).size()) {
    return absl::FailedPreconditionError(
        absl::StrFormat("block %d: %d modules to write, %d were planned", block, modules.size(),
                        this->modules(block).size()));
  }
  std::vector<QuantizedModule> result;
  for (const PlannedModule& planned : this->modules(block)) {
    const auto entry = given.find(planned.module);
    if (entry == given.end()) {
      return absl::FailedPreconditionError(
          absl::StrFormat("block %d: module %s is missing", block, planned.module));
    }
    QuantizedModule module = *entry->second;
    PTQ_RETURN_IF_ERROR(ValidateRecord(planned, module.weight));
    for (at::Tensor* tensor : TensorsOf(module.weight)) *tensor = tensor->cpu().contiguous();
    result.push_back(std::move(module));
  }
  return result;
}

absl::StatusOr<std::string> CheckpointFolder::WriteShard(
    int64_t index, std::vector<LazyTensor> quantized, const CheckpointReader& reader,
    const std::function<absl::Status(RecordCheck&)>& check_quantized,
    const CancellationToken& cancel) const {
  const Shard& shard = shards_[static_cast<size_t>(index)];
  std::vector<LazyTensor> tensors = std::move(quantized);
  const auto source_of = [&reader, &cancel](const std::string& name) -> ByteSource {
    return [&reader, &cancel, name](int64_t offset, int64_t size, void* out) -> absl::Status {
      PTQ_RETURN_IF_ERROR(cancel.Check());
      return reader.ReadBytes(name, offset, size, out);
    };
  };
  for (const std::string& name : shard.plain) {
    PTQ_ASSIGN_OR_RETURN(StoredTensor stored, reader.Describe(name));
    LazyTensor& tensor = tensors.emplace_back();
    tensor.name = name;
    tensor.dtype = stored.dtype;
    tensor.shape = std::move(stored.shape);
    tensor.read = source_of(name);
  }
  const auto check = [&](const std::string& path) -> absl::Status {
    PTQ_ASSIGN_OR_RETURN(RecordCheck file, RecordCheck::Open(path));
    if (check_quantized) PTQ_RETURN_IF_ERROR(check_quantized(file));
    for (const std::string& name : shard.plain) {
      PTQ_ASSIGN_OR_RETURN(const StoredTensor stored, reader.Describe(name));
      PTQ_RETURN_IF_ERROR(file.CheckBytes(name, stored.bytes(), source_of(name)));
    }
    return file.CheckNothingElse();
  };
  return WriteSafetensors(ShardPath(index), std::move(tensors), metadata_, check);
}

absl::StatusOr<FileDigests> CheckpointFolder::WriteOuterShards(
    const CheckpointReader& reader, const CancellationToken& cancel) const {
  FileDigests digests;
  for (const int64_t block : {kEmbeddingBlock, block_count()}) {
    if (!modules(block).empty()) continue;
    PTQ_ASSIGN_OR_RETURN(digests[ShardName(block + 1)],
                         WriteShard(block + 1, {}, reader, {}, cancel));
  }
  return digests;
}

absl::Status CheckpointFolder::CopyOtherFiles() const {
  const std::string& source = plan_.source.index.folder();
  PTQ_ASSIGN_OR_RETURN(const auto names, ListSideFiles(source));
  for (const std::string& name : names) {
    // Indices (those of other weight formats too) are replaced by ours, config.json comes last, and
    // a report would be one of another job.
    if (name == kConfigName || name == "report.json" || absl::EndsWith(name, ".index.json") ||
        IsQuantizationConfig(name)) {
      continue;
    }
    PTQ_RETURN_IF_ERROR(CopyFileAtomically(JoinPath(source, name), JoinPath(folder_, name)));
  }
  return absl::OkStatus();
}

absl::StatusOr<Json> CheckpointFolder::BuildIndex() const {
  Json weight_map = Json::object();
  std::map<std::string, std::string> files;
  int64_t total_bytes = 0;
  for (int64_t i = 0; i < shard_count(); ++i) {
    PTQ_ASSIGN_OR_RETURN(const auto file, ReadableFile::Open(ShardPath(i)));
    const auto header = ReadSafetensorsHeader(file);
    if (!header.ok()) return absl::DataLossError(Message(header.status()));
    const Shard& shard = shards_[static_cast<size_t>(i)];
    std::set<std::string> expected(shard.plain.begin(), shard.plain.end());
    expected.insert(shard.stored.begin(), shard.stored.end());
    for (const TensorInfo& tensor : header->tensors) {
      if (expected.erase(tensor.name) == 0) {
        return absl::DataLossError(
            absl::StrCat(file.path(), ": tensor ", tensor.name, " does not belong into this file"));
      }
      files[tensor.name] = ShardName(i);
      total_bytes += tensor.bytes();
    }
    if (!expected.empty()) {
      return absl::DataLossError(
          absl::StrCat(file.path(), ": tensor ", *expected.begin(), " is missing"));
    }
  }
  for (const auto& [name, file] : files) weight_map[name] = file;
  Json index = Json::object();
  index["metadata"] = Json::object({{"total_size", total_bytes}});
  index["weight_map"] = std::move(weight_map);
  return index;
}

absl::Status CheckpointFolder::WriteConfig(const FolderConfig& config) const {
  const std::string from = JoinPath(plan_.source.index.folder(), kConfigName);
  const std::string to = JoinPath(folder_, kConfigName);
  PTQ_ASSIGN_OR_RETURN(const std::string text, ReadFile(from));
  auto json = ParseJson(text);
  if (!json.ok()) return Annotate(json.status(), from);
  bool changed = false;
  for (const char* key : {"quantization_config", "compression_config"}) {
    changed = json->erase(key) > 0 || changed;
  }
  if (config.dtype) {
    if (!json->contains("dtype") && !json->contains("torch_dtype")) (*json)["torch_dtype"] = "";
    for (const char* key : {"dtype", "torch_dtype"}) {
      if (json->contains(key)) (*json)[key] = ConfigName(*config.dtype);
    }
    changed = true;
  }
  if (config.quantization) {
    (*json)["quantization_config"] = *config.quantization;
    changed = true;
  }
  if (!changed) return CopyFileAtomically(from, to);
  return WriteFileAtomically(to, DumpJsonPretty(*json));
}

absl::Status CheckpointFolder::Finalize(const FolderConfig& config) const {
  PTQ_RETURN_IF_ERROR(CopyOtherFiles());
  PTQ_ASSIGN_OR_RETURN(const Json index, BuildIndex());
  PTQ_RETURN_IF_ERROR(WriteFileAtomically(JoinPath(folder_, kIndexName), DumpJsonPretty(index)));
  for (const auto& [name, json] : config.files) {
    PTQ_RETURN_IF_ERROR(WriteFileAtomically(JoinPath(folder_, name), DumpJsonPretty(json)));
  }
  return WriteConfig(config);
}

DType CheckpointDType(const CheckpointInspection& source) {
  if (source.config.has_dtype) return source.config.dtype;
  for (const TableTensor& tensor : BuildTensorTable(source.config)) {
    const CheckpointTensor* found = source.index.Find(tensor.name);
    if (tensor.role == TensorRole::kEmbedding && found != nullptr) return found->info.dtype;
  }
  return source.config.dtype;
}

RecordView ViewOf(const PlannedModule& module, const AffineQuantizedTensor& weight) {
  RecordView view;
  view.module = module.module;
  view.rows = module.out_features;
  view.columns = module.in_features;
  view.transposed = module.transposed;
  view.block_size = weight.block_size;
  view.bits = weight.bits;
  view.codes = weight.int_data.const_data_ptr<int8_t>();
  if (weight.k_quant != KQuant::kNone) {
    const SuperBlockScales& scales = weight.super_blocks;
    view.k_quant = weight.k_quant;
    view.super_scale = scales.scale.const_data_ptr();
    view.sub_scale = scales.sub_scale.const_data_ptr<int8_t>();
    if (scales.minimum.defined()) {
      view.super_minimum = scales.minimum.const_data_ptr();
      view.sub_minimum = scales.sub_minimum.const_data_ptr<int8_t>();
    }
    return view;
  }
  view.scale_dtype = module.scale_dtype;
  view.scale = weight.scale.const_data_ptr();
  view.zero_point = weight.zero_point.const_data_ptr<int32_t>();
  return view;
}

}  // namespace ptq
