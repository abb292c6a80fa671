#include "models/block_weights.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace ptq {
namespace {

const char* NameOf(TensorPart part) {
  switch (part) {
    case TensorPart::kTokenEmbedding:
      return "token embedding";
    case TensorPart::kPositionEmbedding:
      return "position embedding";
    case TensorPart::kAttentionInputNorm:
      return "norm before attention";
    case TensorPart::kQuery:
      return "query projection";
    case TensorPart::kKey:
      return "key projection";
    case TensorPart::kValue:
      return "value projection";
    case TensorPart::kQueryKeyValue:
      return "query, key and value projection";
    case TensorPart::kQueryNorm:
      return "query norm";
    case TensorPart::kKeyNorm:
      return "key norm";
    case TensorPart::kQueryDown:
      return "projection to the query latent";
    case TensorPart::kQueryLatentNorm:
      return "norm of the query latent";
    case TensorPart::kKeyValueDown:
      return "projection to the key and value latent";
    case TensorPart::kKeyValueLatentNorm:
      return "norm of the key and value latent";
    case TensorPart::kKeyValue:
      return "key and value projection";
    case TensorPart::kAttentionOutput:
      return "output projection of attention";
    case TensorPart::kAttentionOutputNorm:
      return "norm behind attention";
    case TensorPart::kMlpInputNorm:
      return "norm before the MLP";
    case TensorPart::kRouter:
      return "router";
    case TensorPart::kRouterCorrection:
      return "router correction";
    case TensorPart::kSharedExpertGate:
      return "gate of the shared expert";
    case TensorPart::kGate:
      return "gate projection";
    case TensorPart::kUp:
      return "up projection";
    case TensorPart::kGateUp:
      return "gate and up projection";
    case TensorPart::kDown:
      return "down projection";
    case TensorPart::kMlpOutputNorm:
      return "norm behind the MLP";
    case TensorPart::kFinalNorm:
      return "final norm";
    case TensorPart::kHead:
      return "language-model head";
  }
  return "";
}

}  // namespace

absl::Status BlockWeights::Add(const TableTensor& row, const at::Tensor& tensor) {
  const auto follows = [&row](const std::vector<Slot>& slots) {
    return !slots.empty() && slots.back().module == row.module;
  };
  const absl::Status disorder = absl::InternalError(
      absl::StrCat(row.name, " does not follow its weight in the tensor table"));
  const Slot slot = {row.module, row.part, row.expert};
  switch (row.role) {
    case TensorRole::kLinearWeight:
      linears_.push_back({row.module, tensor, at::Tensor()});
      slots_.push_back(slot);
      return absl::OkStatus();
    case TensorRole::kLinearBias:
      if (!follows(slots_)) return disorder;
      linears_.back().bias = tensor;
      return absl::OkStatus();
    case TensorRole::kNorm:
      norms_.push_back({tensor, at::Tensor(), kind_, epsilon_});
      norm_slots_.push_back(slot);
      return absl::OkStatus();
    case TensorRole::kNormBias:
      if (!follows(norm_slots_)) return disorder;
      norms_.back().bias = tensor;
      return absl::OkStatus();
    case TensorRole::kRouter:
      routers_.push_back(tensor);
      router_slots_.push_back(slot);
      return absl::OkStatus();
    case TensorRole::kEmbedding:
    case TensorRole::kHead:
      break;
  }
  return absl::InternalError(absl::StrCat(row.name, " lies inside a block"));
}

absl::StatusOr<size_t> BlockWeights::LinearOf(TensorPart part, int64_t expert) const {
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].part == part && slots_[i].expert == expert) return i;
  }
  return absl::InvalidArgumentError(absl::StrCat(name_, " has no ", NameOf(part)));
}

bool BlockWeights::Has(TensorPart part) const {
  const auto is_part = [part](const Slot& slot) { return slot.part == part; };
  return std::any_of(slots_.begin(), slots_.end(), is_part) ||
         std::any_of(norm_slots_.begin(), norm_slots_.end(), is_part) ||
         std::any_of(router_slots_.begin(), router_slots_.end(), is_part);
}

absl::StatusOr<at::Tensor> BlockWeights::RouterOf(TensorPart part) const {
  for (size_t i = 0; i < routers_.size(); ++i) {
    if (router_slots_[i].part == part) return routers_[i];
  }
  return absl::InvalidArgumentError(absl::StrCat(name_, " has no ", NameOf(part)));
}

absl::StatusOr<Norm> BlockWeights::NeededNormOf(TensorPart part) const {
  const std::optional<Norm> norm = NormOf(part);
  if (norm) return *norm;
  return absl::InvalidArgumentError(absl::StrCat(name_, " has no ", NameOf(part)));
}

std::optional<Norm> BlockWeights::NormOf(TensorPart part) const {
  for (size_t i = 0; i < norms_.size(); ++i) {
    if (norm_slots_[i].part == part) return norms_[i];
  }
  return std::nullopt;
}

}  // namespace ptq
