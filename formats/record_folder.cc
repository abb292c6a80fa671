#include "formats/record_folder.h"

#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "common/torch_status.h"
#include "formats/affine_metadata.h"
#include "formats/record_file.h"
#include "formats/torchao_metadata.h"

namespace ptq {

absl::StatusOr<std::unique_ptr<RecordFolder>> RecordFolder::Create(ExportPlan plan,
                                                                   std::string folder, Kind kind) {
  auto metadata = AffineMetadata(plan);
  PTQ_ASSIGN_OR_RETURN(
      auto shards,
      CheckpointFolder::Create(std::move(plan), folder, std::move(metadata), RecordTensorNames));
  return std::unique_ptr<RecordFolder>(
      new RecordFolder(std::move(shards), std::move(folder), kind));
}

std::string RecordFolder::FileName(int64_t block) const {
  if (kind_ == Kind::kAffineShards) return shards_.ShardName(block + 1);
  if (block == kEmbeddingBlock) return "embedding.safetensors";
  if (block == shards_.block_count()) return "head.safetensors";
  return absl::StrFormat("block-%05d.safetensors", block);
}

absl::StatusOr<std::string> RecordFolder::WriteBlock(int64_t block,
                                                     const std::vector<QuantizedModule>& modules,
                                                     const CheckpointReader& reader,
                                                     const CancellationToken& cancel) const {
  return CatchTorchErrors("records", [&]() -> absl::StatusOr<std::string> {
    PTQ_ASSIGN_OR_RETURN(const auto valid, shards_.ValidModules(block, modules));
    if (kind_ == Kind::kRecords) return WriteRecords(block, valid);
    const std::vector<PlannedModule>& planned = shards_.modules(block);
    std::vector<NamedTensor> tensors;
    for (size_t i = 0; i < valid.size(); ++i) {
      for (NamedTensor& tensor : RecordTensors(planned[i], valid[i].weight)) {
        tensors.push_back(std::move(tensor));
      }
    }
    const DType dtype = CheckpointDType(plan().source);
    return shards_.WriteShard(
        block + 1, ToLazy(std::move(tensors)), reader,
        [&](RecordCheck& file) -> absl::Status {
          for (size_t i = 0; i < valid.size(); ++i) {
            PTQ_RETURN_IF_ERROR(file.CheckAffine(ViewOf(planned[i], valid[i].weight), dtype));
          }
          return absl::OkStatus();
        },
        cancel);
  });
}

absl::StatusOr<std::string> RecordFolder::WriteRecords(
    int64_t block, const std::vector<QuantizedModule>& valid) const {
  const std::vector<PlannedModule>& planned = shards_.modules(block);
  const DType dtype = CheckpointDType(plan().source);
  std::vector<NamedTensor> tensors;
  std::vector<TorchaoParameter> parameters;
  for (size_t i = 0; i < valid.size(); ++i) {
    for (NamedTensor& tensor : RecordTensors(planned[i], valid[i].weight)) {
      tensors.push_back(std::move(tensor));
    }
    parameters.push_back({planned[i].module + ".weight", true, planned[i].scheme,
                          planned[i].out_features, planned[i].in_features});
  }
  const auto check = [&](const std::string& path) -> absl::Status {
    PTQ_ASSIGN_OR_RETURN(RecordCheck file, RecordCheck::Open(path));
    for (size_t i = 0; i < valid.size(); ++i) {
      PTQ_RETURN_IF_ERROR(file.CheckAffine(ViewOf(planned[i], valid[i].weight), dtype));
    }
    return file.CheckNothingElse();
  };
  PTQ_RETURN_IF_ERROR(MakeDirectories(folder_));
  const auto metadata = TorchaoMetadata(parameters, dtype, plan().default_scheme.scale_rule);
  return WriteSafetensors(JoinPath(folder_, FileName(block)), std::move(tensors), metadata, check);
}

absl::StatusOr<std::vector<QuantizedModule>> RecordFolder::ReadBlock(int64_t block) const {
  if (block < kEmbeddingBlock || block > shards_.block_count()) {
    return absl::InvalidArgumentError(absl::StrFormat("there is no block %d", block));
  }
  return ReadRecords(JoinPath(folder_, FileName(block)), shards_.modules(block));
}

absl::StatusOr<FileDigests> RecordFolder::WriteOuterShards(const CheckpointReader& reader,
                                                           const CancellationToken& cancel) const {
  return shards_.WriteOuterShards(reader, cancel);
}

absl::Status RecordFolder::Finalize() const { return shards_.Finalize(AffineConfig(plan())); }

}  // namespace ptq
