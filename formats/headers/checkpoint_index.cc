#include "formats/headers/checkpoint_index.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/headers/model_files.h"
#include "formats/headers/quote.h"
#include "formats/headers/weight_map.h"

namespace ptq {
namespace {

constexpr char kIndexName[] = "model.safetensors.index.json";
constexpr char kSingleName[] = "model.safetensors";
constexpr int64_t kMaxIndexBytes = 256 << 20;
constexpr size_t kMaxShards = 10'000;

// What to tell someone whose folder has no safetensors weights.
absl::Status NoWeights(const std::vector<std::string>& names) {
  std::vector<std::string> pickles;
  for (const std::string& name : names) {
    if (IsPickleName(name)) pickles.push_back(Quote(name));
  }
  if (!pickles.empty()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "the folder has only pickle weights (%s), which are never loaded: convert them to "
        "safetensors",
        ListSome(pickles, 3)));
  }
  for (const std::string& name : names) {
    if (!absl::EndsWith(name, ".gguf")) continue;
    return absl::InvalidArgumentError(
        "the folder has only GGUF weights (" + Quote(name) +
        "): start from the original safetensors checkpoint, or write it in another format with "
        "`convert`");
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("the folder has no weights: neither %s nor %s", kSingleName, kIndexName));
}

absl::StatusOr<WeightMap> ReadIndex(const std::string& folder) {
  PTQ_ASSIGN_OR_RETURN(const std::string text,
                       ReadFile(JoinPath(folder, kIndexName), kMaxIndexBytes));
  auto weight_map = ParseWeightMap(text);
  if (!weight_map.ok()) return Annotate(weight_map.status(), kIndexName);
  return weight_map;
}

// The distinct files of an index, sorted, each of which exists.
absl::StatusOr<std::vector<std::string>> ShardNames(const std::string& folder,
                                                    const WeightMap& weight_map) {
  std::set<std::string> shards;
  for (const auto& [tensor, file] : weight_map) shards.insert(file);
  if (shards.size() > kMaxShards) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: weight_map names more than %d files", kIndexName, kMaxShards));
  }
  std::vector<std::string> missing;
  for (const std::string& shard : shards) {
    if (!PathExists(JoinPath(folder, shard))) missing.push_back(Quote(shard));
  }
  if (!missing.empty()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s names %s, but the folder does not have %s: fetch the checkpoint again",
                        kIndexName, ListSome(missing, 3), missing.size() == 1 ? "it" : "them"));
  }
  return std::vector<std::string>(shards.begin(), shards.end());
}

absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& folder) {
  if (!IsDirectory(folder)) {
    return absl::NotFoundError("the model folder " + Quote(folder) + " does not exist");
  }
  return ListDirectory(folder);
}

absl::Status CheckWeightMap(const WeightMap& weight_map,
                            const std::map<std::string, CheckpointTensor>& tensors) {
  auto found = tensors.begin();  // both are sorted by name
  for (const auto& [name, file] : weight_map) {
    while (found != tensors.end() && found->first < name) ++found;
    if (found == tensors.end() || found->first != name) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: tensor %s is in none of the shards (weight_map says %s)", kIndexName,
                          Quote(name), Quote(file)));
    }
    if (found->second.file != file) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: weight_map says that tensor %s is in %s, but it is in %s",
                          kIndexName, Quote(name), Quote(file), Quote(found->second.file)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CheckpointIndex> CheckpointIndex::Open(const std::string& folder) {
  PTQ_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  CheckpointIndex index;
  index.folder_ = folder;
  WeightMap weight_map;
  if (std::binary_search(names.begin(), names.end(), kIndexName)) {
    PTQ_ASSIGN_OR_RETURN(weight_map, ReadIndex(folder));
    PTQ_ASSIGN_OR_RETURN(index.files_, ShardNames(folder, weight_map));
  } else if (std::binary_search(names.begin(), names.end(), kSingleName)) {
    index.files_ = {kSingleName};
  } else {
    return NoWeights(names);
  }
  for (const std::string& name : index.files_) {
    PTQ_ASSIGN_OR_RETURN(const auto file, ReadableFile::Open(JoinPath(folder, name)));
    PTQ_ASSIGN_OR_RETURN(auto header, ReadSafetensorsHeader(file, name));
    index.metadata_[name] = std::move(header.metadata);
    for (TensorInfo& info : header.tensors) {
      const int64_t file_offset = header.data_offset + info.begin;
      index.total_bytes_ += info.bytes();
      std::string tensor = info.name;
      const auto [at, inserted] = index.tensors_.try_emplace(
          std::move(tensor), CheckpointTensor{std::move(info), name, file_offset});
      if (!inserted) {
        return absl::InvalidArgumentError(absl::StrFormat("tensor %s is in two shards, %s and %s",
                                                          Quote(at->first), at->second.file, name));
      }
    }
  }
  PTQ_RETURN_IF_ERROR(CheckWeightMap(weight_map, index.tensors_));
  if (index.tensors_.empty()) return absl::InvalidArgumentError("the checkpoint has no tensors");
  return index;
}

CheckpointIndex CheckpointIndex::Of(std::string folder, std::vector<TensorInfo> tensors) {
  CheckpointIndex index;
  index.folder_ = std::move(folder);
  for (TensorInfo& info : tensors) {
    index.total_bytes_ += info.bytes();
    std::string name = info.name;
    index.tensors_[std::move(name)].info = std::move(info);
  }
  return index;
}

const CheckpointTensor* CheckpointIndex::Find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

absl::StatusOr<std::vector<std::string>> SelectModelFiles(const std::string& model,
                                                          std::vector<std::string>* skipped) {
  const std::string folder = ModelFolder(model);
  PTQ_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder));
  PTQ_ASSIGN_OR_RETURN(const std::string gguf, FindGgufFile(model));
  std::vector<std::string> weights;
  if (!gguf.empty()) {
    weights = {BaseName(gguf)};
  } else if (std::binary_search(names.begin(), names.end(), kIndexName)) {
    PTQ_ASSIGN_OR_RETURN(const WeightMap weight_map, ReadIndex(folder));
    PTQ_ASSIGN_OR_RETURN(weights, ShardNames(folder, weight_map));
  } else if (std::binary_search(names.begin(), names.end(), kSingleName)) {
    weights = {kSingleName};
  } else {
    return NoWeights(names);
  }
  std::vector<std::string> selected;
  for (const std::string& name : names) {
    const bool is_weights = std::binary_search(weights.begin(), weights.end(), name);
    const bool wanted =
        (is_weights && IsSafeRelativePath(name) && name[0] != '.') || IsSideFileName(name);
    if (wanted && !IsDirectory(JoinPath(folder, name))) {
      selected.push_back(name);
    } else if (skipped != nullptr) {
      skipped->push_back(name);
    }
  }
  return selected;
}

}  // namespace ptq
