#include "worker/device.h"

#include <ATen/Context.h>

#include "algorithms/cuda/cuda_runtime.h"
#include "common/logging.h"
#include "common/status_util.h"

namespace ptq {

absl::StatusOr<c10::Device> SelectDevice(DeviceChoice choice) {
  if (choice == DeviceChoice::kCpu) return c10::Device(c10::kCPU);
  const absl::Status cuda = LoadCuda();
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

}  // namespace ptq
