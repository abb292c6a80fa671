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

// What may lie on a GPU beside the work in hand, in bytes.
struct DeviceShares {
  int64_t fisher_outputs = 0;  // outputs of blocks, while the Fisher pass runs
  int64_t kept_weights = 0;    // blocks that stay loaded from one pass over the model to the next
};

// Shares out a GPU of `device_bytes`; `chain_bytes` are the hidden states of all calibration
// samples at one place in the model.
DeviceShares SplitDeviceMemory(int64_t device_bytes, int64_t chain_bytes);

// "cpu", "cuda:0".
std::string DeviceLabel(c10::Device device);
// "bfloat16", as config.json spells it.
std::string DtypeLabel(at::ScalarType type);

}  // namespace ptq

#endif  // PTQ_WORKER_DEVICE_H_
