#include "worker/export_formats.h"

#include <algorithm>
#include <atomic>

#include "common/file.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/checkpoint_format.h"

namespace ptq {
namespace {

// Tells of each block that is read.
class WatchedCheckpoint final : public QuantizedCheckpoint {
 public:
  WatchedCheckpoint(const QuantizedCheckpoint& checkpoint, std::function<void()> on_block)
      : checkpoint_(checkpoint), on_block_(std::move(on_block)) {}
  const ExportPlan& plan() const override { return checkpoint_.plan(); }
  const CheckpointReader& plain() const override { return checkpoint_.plain(); }
  absl::StatusOr<std::vector<QuantizedModule>> ReadBlock(int64_t block) const override {
    on_block_();
    return checkpoint_.ReadBlock(block);
  }

 private:
  const QuantizedCheckpoint& checkpoint_;
  const std::function<void()> on_block_;
};

bool Contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

absl::StatusOr<std::vector<std::string>> ListResultFiles(const std::string& folder) {
  PTQ_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(folder));
  std::vector<std::string> files;
  for (const std::string& name : names) {
    if (name[0] == '.' || name == "report.json" || name == "report.html") continue;
    if (!IsDirectory(JoinPath(folder, name))) {
      files.push_back(name);
      continue;
    }
    PTQ_ASSIGN_OR_RETURN(const auto inner, ListDirectory(JoinPath(folder, name)));
    for (const std::string& file : inner) files.push_back(JoinPath(name, file));
  }
  return files;
}

}  // namespace

std::string FormatFolder(const std::string& folder, const std::vector<std::string>& formats,
                         const std::string& format) {
  return formats.size() > 1 ? JoinPath(folder, format) : folder;
}

absl::StatusOr<FileDigests> ExportFormats(const QuantizedCheckpoint& checkpoint,
                                          const std::vector<std::string>& formats,
                                          const std::vector<std::string>& present,
                                          const std::string& folder,
                                          const CancellationToken& cancel,
                                          const std::function<void(double)>& progress) {
  const auto left = static_cast<double>(
      std::count_if(formats.begin(), formats.end(),
                    [&](const std::string& name) { return !Contains(present, name); }));
  const auto blocks = static_cast<double>(checkpoint.plan().source.config.num_hidden_layers);
  std::atomic<int64_t> begun{0};
  const WatchedCheckpoint watched(
      checkpoint, [&] { progress(std::min(1.0, static_cast<double>(begun++) / (left * blocks))); });
  FileDigests digests;
  for (const std::string& name : formats) {
    if (Contains(present, name)) continue;
    const CheckpointFormat* format = FindCheckpointFormat(name);
    if (format == nullptr) return absl::InternalError("there is no format " + name);
    const std::string target = FormatFolder(folder, formats, name);
    if (target != folder) {
      PTQ_RETURN_IF_ERROR(RemoveTree(target));
      PTQ_RETURN_IF_ERROR(MakeDirectories(target));
    }
    PTQ_ASSIGN_OR_RETURN(const FileDigests written, format->Write(watched, target, cancel));
    for (const auto& [file, digest] : written) {
      digests[target == folder ? file : JoinPath(name, file)] = digest;
    }
  }
  return digests;
}

absl::StatusOr<std::vector<FileDigest>> DigestResultFiles(const std::string& folder,
                                                          const FileDigests& known,
                                                          const CancellationToken& cancel) {
  PTQ_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListResultFiles(folder));
  std::vector<FileDigest> files;
  for (const std::string& name : names) {
    const auto digest = known.find(name);
    if (digest == known.end()) {
      PTQ_ASSIGN_OR_RETURN(files.emplace_back(), DigestFile(folder, name, cancel));
      continue;
    }
    PTQ_ASSIGN_OR_RETURN(const auto file, ReadableFile::Open(JoinPath(folder, name)));
    files.push_back({name, file.size(), digest->second});
  }
  return files;
}

}  // namespace ptq
