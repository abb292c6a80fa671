#include "worker/host_staging.h"

#include <ATen/ops/empty.h>

namespace ptq {
namespace {

constexpr int64_t kAlignment = 64;

int64_t AlignedBytes(const at::Tensor& tensor) {
  return (static_cast<int64_t>(tensor.nbytes()) + kAlignment - 1) / kAlignment * kAlignment;
}

template <typename Function>
void ForTensors(std::vector<QuantizedModule>& modules, const Function& function) {
  for (QuantizedModule& module : modules) {
    for (at::Tensor* tensor : TensorsOf(module.weight)) {
      if (!tensor->is_cpu()) function(*tensor);
    }
  }
}

}  // namespace

void HostStaging::Fill(int64_t slot, std::vector<QuantizedModule>& modules) {
  int64_t bytes = 0;
  ForTensors(modules, [&](const at::Tensor& tensor) { bytes += AlignedBytes(tensor); });
  if (bytes == 0) return;
  at::Tensor& memory = slots_[static_cast<size_t>(slot)];
  if (!memory.defined() || memory.numel() < bytes) {
    memory = at::Tensor();
    memory = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(true));
  }
  int64_t used = 0;
  ForTensors(modules, [&](at::Tensor& tensor) {
    const at::Tensor host = memory.narrow(0, used, static_cast<int64_t>(tensor.nbytes()))
                                .view(tensor.scalar_type())
                                .view(tensor.sizes());
    used += AlignedBytes(tensor);
    host.copy_(tensor.contiguous());
    tensor = host;
  });
}

}  // namespace ptq
