// Which device a job computes on, and making its arithmetic repeatable.
#ifndef PTQ_WORKER_DEVICE_H_
#define PTQ_WORKER_DEVICE_H_

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "worker/spec/job_spec.h"

namespace ptq {

// kAuto: the first GPU if there is one, else the CPU. kCuda: kFailedPrecondition without one,
// saying why. kUnavailable where there is one that fails. A GPU's libraries are loaded here, on
// first use.
absl::StatusOr<c10::Device> SelectDevice(DeviceChoice choice);

// Equal input gives equal bits on one machine. Call once before any tensor arithmetic.
void UseDeterministicAlgorithms();

// Page-locked host memory that is not rounded up to a power of two, unlike libtorch's; plain memory
// where CUDA is not loaded. Throws std::bad_alloc if there is not so much.
at::Tensor PinnedEmpty(at::IntArrayRef shape, at::ScalarType dtype);
// For a job that takes little of the device's memory: what its tensors leave free between them
// shall not be lost. Before the first large one; does nothing without CUDA.
void AvoidFragmentedCudaMemory();
// Gives back what libtorch keeps of the device's memory for later; does nothing without CUDA.
void ReleaseCudaMemory();

// "cpu", "cuda:0".
std::string DeviceLabel(c10::Device device);
// "bfloat16", as config.json spells it.
std::string DtypeLabel(at::ScalarType type);

}  // namespace ptq

#endif  // PTQ_WORKER_DEVICE_H_
