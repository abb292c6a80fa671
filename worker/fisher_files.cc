#include "worker/fisher_files.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/headers/safetensors_header.h"
#include "formats/safetensors_writer.h"
#include "worker/file_digest.h"

namespace ptq {
namespace {

constexpr char kTensor[] = "upper_triangle";

}  // namespace

std::string FisherFiles::PathOf(int64_t block) const {
  return JoinPath(folder_, absl::StrFormat("fisher-%05d.safetensors", block));
}

std::string FisherFiles::ManifestPath() const { return JoinPath(folder_, "fisher.json"); }

absl::StatusOr<Json> FisherFiles::Manifest() const {
  PTQ_ASSIGN_OR_RETURN(const std::string text, ReadFile(ManifestPath()));
  absl::StatusOr<Json> manifest = ParseJson(text);
  if (!manifest.ok() || !manifest->is_object() ||
      manifest->value("identity", Json()) != identity_ ||
      !manifest->value("digests", Json()).is_object() ||
      (*manifest)["digests"].size() != static_cast<size_t>(blocks_)) {
    return absl::DataLossError(ManifestPath() + ": not the manifest of these Fisher metrics");
  }
  return manifest;
}

double FisherFiles::Seconds() const {
  const absl::StatusOr<Json> manifest = Manifest();
  const Json seconds = manifest.ok() ? manifest->value("seconds", Json()) : Json();
  return seconds.is_number() ? seconds.get<double>() : 0;
}

absl::Status FisherFiles::StartOver() {
  PTQ_RETURN_IF_ERROR(RemoveTree(folder_));
  digests_ = Json::object();
  return MakeDirectories(folder_);
}

absl::Status FisherFiles::Write(int64_t block, const at::Tensor& fisher) {
  const at::Tensor square = fisher.to(at::kBFloat16).cpu().contiguous();
  const int64_t size = square.size(0);
  at::Tensor upper = at::empty({size * (size + 1) / 2}, square.options());
  auto* target = upper.mutable_data_ptr<at::BFloat16>();
  const auto* source = square.const_data_ptr<at::BFloat16>();
  for (int64_t row = 0; row < size; ++row) {
    target = std::copy(source + row * size + row, source + (row + 1) * size, target);
  }
  PTQ_ASSIGN_OR_RETURN(const std::string sha256,
                       WriteSafetensors(PathOf(block), {NamedTensor{kTensor, upper}}, {}));
  digests_[std::to_string(block)] = sha256;
  return absl::OkStatus();
}

absl::Status FisherFiles::Finish(double seconds) {
  return WriteFileAtomically(
      ManifestPath(),
      DumpJsonPretty(Json{{"identity", identity_}, {"digests", digests_}, {"seconds", seconds}}));
}

absl::StatusOr<at::Tensor> FisherFiles::Read(int64_t block) const {
  const std::string path = PathOf(block);
  const auto damaged = [&](const char* what) {
    return absl::DataLossError(absl::StrFormat("%s: %s", path, what));
  };
  const absl::StatusOr<Json> manifest = Manifest();
  if (!manifest.ok()) return damaged(Message(manifest.status()).c_str());
  const Json expected = (*manifest)["digests"].value(std::to_string(block), Json());
  const CancellationToken never;
  const auto digest = DigestFile(folder_, BaseName(path), never);
  if (!digest.ok() || expected != Json(digest->sha256)) {
    return damaged("the Fisher metric is missing or damaged");
  }
  PTQ_ASSIGN_OR_RETURN(const auto file, ReadableFile::Open(path));
  PTQ_ASSIGN_OR_RETURN(const auto header, ReadSafetensorsHeader(file));
  if (header.tensors.size() != 1 || header.tensors[0].name != kTensor ||
      header.tensors[0].shape.size() != 1) {
    return damaged("not a Fisher metric");
  }
  const int64_t count = header.tensors[0].shape[0];
  const auto size = static_cast<int64_t>((std::sqrt(8.0 * static_cast<double>(count) + 1) - 1) / 2);
  if (size * (size + 1) / 2 != count) return damaged("not a triangle");
  at::Tensor upper = at::empty({count}, at::kBFloat16);
  PTQ_RETURN_IF_ERROR(file.ReadAt(header.data_offset + header.tensors[0].begin,
                                  upper.mutable_data_ptr(), upper.nbytes()));
  at::Tensor square = at::zeros({size, size}, at::kBFloat16);
  const auto* source = upper.const_data_ptr<at::BFloat16>();
  auto* target = square.mutable_data_ptr<at::BFloat16>();
  for (int64_t row = 0; row < size; ++row) {
    std::copy(source, source + size - row, target + row * size + row);
    source += size - row;
  }
  const at::Tensor wide = square.to(at::kFloat);
  return wide + wide.triu(1).t();
}

}  // namespace ptq
