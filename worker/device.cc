#include "worker/device.h"

#include <ATen/Context.h>
#include <dlfcn.h>

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
