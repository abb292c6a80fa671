#include "observers/hidden_store.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

#include "common/status_macros.h"

namespace ptq {

absl::StatusOr<HiddenStore> HiddenStore::Create(int64_t slots, at::IntArrayRef shape,
                                                const at::TensorOptions& like,
                                                const Options& options) {
  HiddenStore store;
  store.shape_ = shape.vec();
  store.options_ = like;
  const int64_t slot_bytes = std::max<int64_t>(1, store.BytesOf(shape[0]));
  const int64_t on_device = std::min(slots, options.device_bytes / slot_bytes);
  for (int64_t slot = 0; slot < on_device; ++slot) {
    store.device_.push_back(at::empty(shape, like));
  }
  if (on_device < slots) {
    PTQ_ASSIGN_OR_RETURN(auto file, ScratchFile::Create(options.folder));
    store.file_.emplace(std::move(file));
  }
  return store;
}

int64_t HiddenStore::BytesOf(int64_t samples) const {
  return samples * shape_[1] * shape_[2] * static_cast<int64_t>(options_.dtype().itemsize());
}

absl::Status HiddenStore::Write(int64_t slot, int64_t begin, const at::Tensor& piece) {
  if (slot < static_cast<int64_t>(device_.size())) {
    device_[static_cast<size_t>(slot)].narrow(0, begin, piece.size(0)).copy_(piece);
    return absl::OkStatus();
  }
  const at::Tensor host = piece.to(options_.dtype()).cpu().contiguous();
  return file_->WriteAt(slot * BytesOf(shape_[0]) + BytesOf(begin), host.const_data_ptr(),
                        static_cast<size_t>(BytesOf(piece.size(0))));
}

absl::StatusOr<at::Tensor> HiddenStore::Read(int64_t slot, int64_t begin, int64_t count) const {
  if (slot < static_cast<int64_t>(device_.size())) {
    return device_[static_cast<size_t>(slot)].narrow(0, begin, count);
  }
  const at::Tensor host = at::empty({count, shape_[1], shape_[2]}, options_.device(at::kCPU));
  PTQ_RETURN_IF_ERROR(file_->ReadAt(slot * BytesOf(shape_[0]) + BytesOf(begin),
                                    host.mutable_data_ptr(), static_cast<size_t>(BytesOf(count))));
  return host.to(options_.device());
}

}  // namespace ptq
