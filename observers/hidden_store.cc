#include "observers/hidden_store.h"

#include <ATen/ops/empty.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "common/file.h"
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
    std::string path = JoinPath(options.folder, "hidden-XXXXXX");
    store.fd_ = ::mkostemp(path.data(), O_CLOEXEC);
    if (store.fd_ < 0) return ErrnoStatus(errno, options.folder);
    ::unlink(path.c_str());
  }
  return store;
}

HiddenStore::~HiddenStore() {
  if (fd_ >= 0) ::close(fd_);
}

HiddenStore::HiddenStore(HiddenStore&& other) noexcept
    : shape_(std::move(other.shape_)),
      options_(other.options_),
      device_(std::move(other.device_)),
      fd_(std::exchange(other.fd_, -1)) {}

int64_t HiddenStore::BytesOf(int64_t samples) const {
  return samples * shape_[1] * shape_[2] * static_cast<int64_t>(options_.dtype().itemsize());
}

absl::Status HiddenStore::Write(int64_t slot, int64_t begin, const at::Tensor& piece) {
  if (slot < static_cast<int64_t>(device_.size())) {
    device_[static_cast<size_t>(slot)].narrow(0, begin, piece.size(0)).copy_(piece);
    return absl::OkStatus();
  }
  const at::Tensor host = piece.to(options_.dtype()).cpu().contiguous();
  const char* data = static_cast<const char*>(host.const_data_ptr());
  int64_t left = BytesOf(piece.size(0));
  int64_t offset = slot * BytesOf(shape_[0]) + BytesOf(begin);
  while (left > 0) {
    const ssize_t written = ::pwrite(fd_, data, static_cast<size_t>(left), offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(errno, "hidden states on the disk");
    data += written;
    offset += written;
    left -= written;
  }
  return absl::OkStatus();
}

absl::StatusOr<at::Tensor> HiddenStore::Read(int64_t slot, int64_t begin, int64_t count) const {
  if (slot < static_cast<int64_t>(device_.size())) {
    return device_[static_cast<size_t>(slot)].narrow(0, begin, count);
  }
  const at::Tensor host = at::empty({count, shape_[1], shape_[2]}, options_.device(at::kCPU));
  char* data = static_cast<char*>(host.mutable_data_ptr());
  int64_t left = BytesOf(count);
  int64_t offset = slot * BytesOf(shape_[0]) + BytesOf(begin);
  while (left > 0) {
    const ssize_t got = ::pread(fd_, data, static_cast<size_t>(left), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "hidden states on the disk");
    if (got == 0) return absl::DataLossError("hidden states on the disk end too early");
    data += got;
    offset += got;
    left -= got;
  }
  return host.to(options_.device());
}

}  // namespace ptq
