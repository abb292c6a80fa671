#include "worker/baseline_cache.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "common/file.h"
#include "common/logging.h"
#include "common/sha256.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/checkpoint_reader.h"
#include "formats/headers/safetensors_header.h"
#include "formats/safetensors_writer.h"

namespace ptq {
namespace {

constexpr char kTensorName[] = "hidden";
constexpr char kDigestName[] = "sha256";

std::string DigestOf(const at::Tensor& tensor) {
  return Sha256Hex({static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()});
}

absl::StatusOr<at::Tensor> ReadEntry(const std::string& path) {
  PTQ_ASSIGN_OR_RETURN(const auto file, ReadableFile::Open(path));
  PTQ_ASSIGN_OR_RETURN(const SafetensorsHeader header, ReadSafetensorsHeader(file));
  const auto digest = header.metadata.find(kDigestName);
  if (header.tensors.size() != 1 || digest == header.metadata.end()) {
    return absl::DataLossError(path + ": not an entry of the baseline cache");
  }
  const TensorInfo& info = header.tensors.front();
  if (info.bytes() > BaselineCache::kMaxEntryBytes) {
    return absl::DataLossError(path + ": too large");
  }
  PTQ_ASSIGN_OR_RETURN(const at::ScalarType type, ToScalarType(info.dtype));
  at::Tensor tensor = at::empty(info.shape, type);
  PTQ_RETURN_IF_ERROR(file.ReadAt(header.data_offset, tensor.mutable_data_ptr(), tensor.nbytes()));
  if (DigestOf(tensor) != digest->second) return absl::DataLossError(path + ": wrong digest");
  return tensor;
}

}  // namespace

std::string BaselineCache::PathOf(const std::string& key) const {
  return JoinPath(folder_, "baseline-" + key + ".safetensors");
}

std::optional<at::Tensor> BaselineCache::Find(const std::string& key) const {
  if (folder_.empty() || !PathExists(PathOf(key))) return std::nullopt;
  absl::StatusOr<at::Tensor> tensor = ReadEntry(PathOf(key));
  if (!tensor.ok()) {
    PTQ_LOG(Warning) << "baseline cache: " << Message(tensor.status());
    return std::nullopt;
  }
  std::error_code ignored;  // the time only orders removals
  std::filesystem::last_write_time(PathOf(key), std::filesystem::file_time_type::clock::now(),
                                   ignored);
  return *std::move(tensor);
}

absl::Status BaselineCache::Store(const std::string& key, const at::Tensor& hidden) const {
  const at::Tensor host = hidden.cpu().contiguous();
  if (!Accepts(static_cast<int64_t>(host.nbytes()))) return absl::OkStatus();
  PTQ_RETURN_IF_ERROR(MakeDirectories(folder_));
  PTQ_RETURN_IF_ERROR(
      WriteSafetensors(PathOf(key), {{kTensorName, host}}, {{kDigestName, DigestOf(host)}})
          .status());
  RemoveOldest();
  return absl::OkStatus();
}

void BaselineCache::RemoveOldest() const {
  struct Entry {
    std::filesystem::file_time_type time;
    std::filesystem::path path;
    int64_t bytes;
  };
  std::vector<Entry> entries;
  int64_t total = 0;
  std::error_code error;
  for (const auto& file : std::filesystem::directory_iterator(folder_, error)) {
    if (file.path().filename().string().rfind("baseline-", 0) != 0) continue;
    std::error_code gone;  // another worker may be removing too
    const auto time = file.last_write_time(gone);
    const auto bytes = static_cast<int64_t>(file.file_size(gone));
    if (gone) continue;
    entries.push_back({time, file.path(), bytes});
    total += bytes;
  }
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.time < b.time; });
  for (size_t i = 0; i < entries.size() && total > kMaxTotalBytes; ++i) {
    std::filesystem::remove(entries[i].path, error);
    total -= entries[i].bytes;
  }
}

}  // namespace ptq
