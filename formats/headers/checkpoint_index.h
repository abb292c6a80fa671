// Which file of a Hugging Face folder holds which tensor: model.safetensors.index.json with its
// shards, or model.safetensors alone. Reads headers only.
#ifndef PTQ_FORMATS_HEADERS_CHECKPOINT_INDEX_H_
#define PTQ_FORMATS_HEADERS_CHECKPOINT_INDEX_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/headers/safetensors_header.h"

namespace ptq {

struct CheckpointTensor {
  TensorInfo info;
  std::string file;         // relative to the folder
  int64_t file_offset = 0;  // of the tensor's first byte in that file
};

class CheckpointIndex {
 public:
  // kInvalidArgument naming file and tensor for: no weights, only pickle weights (said so), a shard
  // that the index names but is missing or truncated, a weight_map value that is not a plain file
  // name, a tensor in two shards or in none, any header error.
  static absl::StatusOr<CheckpointIndex> Open(const std::string& folder);

  // Of tensors that lie in no safetensors file: no files(), and each CheckpointTensor says so by an
  // empty name. `folder` is that of config.json and what goes with it.
  static CheckpointIndex Of(std::string folder, std::vector<TensorInfo> tensors);

  // nullptr if there is no such tensor.
  const CheckpointTensor* Find(const std::string& name) const;
  const std::map<std::string, CheckpointTensor>& tensors() const { return tensors_; }
  // Relative names of the safetensors files, sorted.
  const std::vector<std::string>& files() const { return files_; }
  const std::string& folder() const { return folder_; }
  // "__metadata__" of a file.
  const std::map<std::string, std::string>& metadata(const std::string& file) const {
    return metadata_.at(file);
  }
  // Sum of all tensors.
  int64_t total_bytes() const { return total_bytes_; }

 private:
  std::string folder_;
  std::vector<std::string> files_;
  std::map<std::string, CheckpointTensor> tensors_;
  std::map<std::string, std::map<std::string, std::string>> metadata_;  // by file
  int64_t total_bytes_ = 0;
};

// Which files of a model folder belong to the model: *.json, tokenizer and chat-template files, and
// the safetensors that the index names (or model.safetensors). `skipped` is told of the others.
// Subfolders are skipped. kInvalidArgument if only pickle weights are there.
absl::StatusOr<std::vector<std::string>> SelectModelFiles(const std::string& folder,
                                                          std::vector<std::string>* skipped);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_CHECKPOINT_INDEX_H_
