#include "worker/fisher_files.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/sha256.h"
#include "common/status_macros.h"
#include "formats/headers/safetensors_header.h"
#include "formats/safetensors_writer.h"

namespace ptq {
namespace {

constexpr char kTensor[] = "upper_triangle";
// Of a width of 65536.
constexpr int64_t kMaxFileBytes = int64_t{1} << 33;

}  // namespace

std::string FisherFiles::PathOf(int64_t block) const {
  return JoinPath(folder_, absl::StrFormat("fisher-%05d.safetensors", block));
}

std::string FisherFiles::ManifestPath() const { return JoinPath(folder_, "fisher.json"); }

FisherFiles::FisherFiles(std::string folder, int64_t blocks, Json identity)
    : folder_(std::move(folder)), blocks_(blocks), identity_(std::move(identity)) {
  const absl::StatusOr<std::string> text = ReadFile(ManifestPath());
  const absl::StatusOr<Json> manifest = text.ok() ? ParseJson(*text) : text.status();
  if (!manifest.ok() || !manifest->is_object() ||
      manifest->value("identity", Json()) != identity_) {
    return;
  }
  const Json digests = manifest->value("digests", Json());
  const Json seconds = manifest->value("seconds", Json());
  if (!digests.is_object() || digests.size() != static_cast<size_t>(blocks_)) return;
  digests_ = digests;
  seconds_ = seconds.is_number() ? seconds.get<double>() : 0;
  complete_ = true;
}

absl::Status FisherFiles::StartOver() {
  PTQ_RETURN_IF_ERROR(RemoveTree(folder_));
  digests_ = Json::object();
  complete_ = false;
  seconds_ = 0;
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
  PTQ_RETURN_IF_ERROR(WriteFileAtomically(
      ManifestPath(),
      DumpJsonPretty(Json{{"identity", identity_}, {"digests", digests_}, {"seconds", seconds}})));
  complete_ = digests_.size() == static_cast<size_t>(blocks_);
  seconds_ = complete_ ? seconds : 0;
  return absl::OkStatus();
}

absl::StatusOr<at::Tensor> FisherFiles::Read(int64_t block) const {
  const std::string path = PathOf(block);
  const auto damaged = [&](const char* what) {
    return absl::DataLossError(absl::StrFormat("%s: %s", path, what));
  };
  const auto bytes = ReadFile(path, kMaxFileBytes);
  if (!bytes.ok() || digests_.value(std::to_string(block), Json()) != Json(Sha256Hex(*bytes))) {
    return damaged("the Fisher metric is missing or damaged");
  }
  uint64_t length = 0;
  if (bytes->size() < sizeof(length)) return damaged("not a Fisher metric");
  std::memcpy(&length, bytes->data(), sizeof(length));
  if (bytes->size() - sizeof(length) < length) return damaged("not a Fisher metric");
  const std::string_view data = std::string_view(*bytes).substr(sizeof(length) + length);
  PTQ_ASSIGN_OR_RETURN(
      const auto header,
      ParseSafetensorsHeader(std::string_view(*bytes).substr(sizeof(length), length),
                             static_cast<int64_t>(data.size())));
  if (header.tensors.size() != 1 || header.tensors[0].name != kTensor ||
      header.tensors[0].shape.size() != 1) {
    return damaged("not a Fisher metric");
  }
  const int64_t count = header.tensors[0].shape[0];
  const auto size = static_cast<int64_t>((std::sqrt(8.0 * static_cast<double>(count) + 1) - 1) / 2);
  if (size * (size + 1) / 2 != count) return damaged("not a triangle");
  if (static_cast<size_t>(count) * sizeof(at::BFloat16) != data.size()) {
    return damaged("not of bfloat16");
  }
  at::Tensor square = at::zeros({size, size}, at::kBFloat16);
  const char* source = data.data();
  auto* target = square.mutable_data_ptr<at::BFloat16>();
  for (int64_t row = 0; row < size; ++row) {
    const size_t row_bytes = static_cast<size_t>(size - row) * sizeof(at::BFloat16);
    std::memcpy(target + row * size + row, source, row_bytes);
    source += row_bytes;
  }
  const at::Tensor wide = square.to(at::kFloat);
  return wide + wide.triu(1).t();
}

}  // namespace ptq
