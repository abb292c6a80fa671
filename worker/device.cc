#include "worker/device.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/ScalarType.h>
#include <c10/util/accumulate.h>
#include <dlfcn.h>

#include <new>

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

at::Tensor PinnedEmpty(at::IntArrayRef shape, at::ScalarType dtype) {
  const CudaApi* cuda = LoadedCuda();
  if (cuda == nullptr) return at::empty(shape, dtype);
  const auto elements = static_cast<size_t>(c10::multiply_integers(shape));
  void* memory = cuda->host_alloc(elements * c10::elementSize(dtype));
  if (memory == nullptr) throw std::bad_alloc();
  return at::from_blob(
      memory, shape, [cuda](void* data) { cuda->host_free(data); }, dtype);
}

void AvoidFragmentedCudaMemory() {
  if (const CudaApi* cuda = LoadedCuda(); cuda != nullptr) cuda->use_expandable_segments();
}

void ReleaseCudaMemory() {
  if (const CudaApi* cuda = LoadedCuda(); cuda != nullptr) cuda->release_cached_memory();
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
