#include "worker/device.h"

#include <ATen/Context.h>
#include <dlfcn.h>

#include <algorithm>

#include "algorithms/cuda/cuda_runtime.h"
#include "common/logging.h"
#include "common/status_util.h"

namespace ptq {
namespace {

// LoadCuda brings libtorch's CUDA half into the process, a second of time and hundreds of
// megabytes: not on a machine without a driver.
absl::Status LoadCudaIfThereIsADriver() {
  if (::dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL) == nullptr) {
    return absl::FailedPreconditionError(
        "no NVIDIA driver was found on this machine; use device cpu or auto");
  }
  return LoadCuda();
}

}  // namespace

absl::StatusOr<c10::Device> SelectDevice(DeviceChoice choice) {
  if (choice == DeviceChoice::kCpu) return c10::Device(c10::kCPU);
  const absl::Status cuda = LoadCudaIfThereIsADriver();
  if (cuda.ok()) return c10::Device(c10::kCUDA, 0);
  if (absl::IsInternal(cuda)) {  // days on a CPU are not what a machine with a GPU was asked for
    return absl::UnavailableError("device: there is a GPU, but it can't be used: " + Message(cuda) +
                                  "; see nvidia-smi, or use device cpu to do without it");
  }
  if (choice == DeviceChoice::kCuda) {
    return absl::FailedPreconditionError("device: " + Message(cuda));
  }
  PTQ_LOG(Debug) << "computing on the CPU: " << Message(cuda);
  return c10::Device(c10::kCPU);
}

void UseDeterministicAlgorithms() {
  at::globalContext().setDeterministicAlgorithms(/*b=*/true, /*warn_only=*/false);
  // The mode would also fill every fresh tensor with NaN, to show reads of what was never written.
  at::globalContext().setDeterministicFillUninitializedMemory(false);
}

// Of a device's memory M, with chains of C bytes:
//   the Fisher pass   M/4 for outputs, kept weights, and one chain: the embedding, which both share
//   tuning a block    kept weights, and three chains: full precision, its outputs, quantized
//   kept weights      at most M/4, and no more than the three chains leave of M/2
// so that M/2 while a block is tuned, and never less than 5/12 M in the Fisher pass (C = M/12)
// unless the chains themselves take more, is left to the work in hand: the block and the next one,
// the head, activations, gradients, Hessians. Of 80 GB a Llama of 8B (14 GB of blocks) keeps all
// blocks beside 128 samples of 2048 tokens (2.1 GB a chain), one of 70B every seventh.
DeviceShares SplitDeviceMemory(int64_t device_bytes, int64_t chain_bytes) {
  const int64_t quarter = device_bytes / 4;
  return {.fisher_outputs = quarter,
          .kept_weights = std::clamp<int64_t>(2 * quarter - 3 * chain_bytes, 0, quarter)};
}

std::string DeviceLabel(c10::Device device) { return device.str(); }

std::string DtypeLabel(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return "float32";
    case at::kBFloat16:
      return "bfloat16";
    case at::kHalf:
      return "float16";
    default:
      return c10::toString(type);
  }
}

}  // namespace ptq
