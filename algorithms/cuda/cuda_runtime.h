// CUDA at run time: ptq-worker links libtorch's CPU half alone, and loads the CUDA half together
// with this project's kernels (libptq_cuda.so) when a job asks for a GPU.
#ifndef PTQ_ALGORITHMS_CUDA_CUDA_RUNTIME_H_
#define PTQ_ALGORITHMS_CUDA_CUDA_RUNTIME_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "algorithms/cuda/cuda_api.h"

namespace ptq {

// Loads libtorch_cuda.so (by the run path or LD_LIBRARY_PATH) and libptq_cuda.so (beside the
// program, or in ../bin), and checks that there is a device. Later calls return the first one's
// result. Call it before anything else asks libtorch about CUDA: libtorch remembers for good that
// there is none.
//
// Also makes libtorch choose deterministic CUDA kernels: the same spec gives the same bytes.
//
// kUnavailable: this build or installation has no CUDA part. kFailedPrecondition: it has, but no
// usable driver or device was found.
absl::Status LoadCuda();

// The table of a loaded CUDA part; nullptr before LoadCuda succeeded. Thread-safe.
const CudaApi* LoadedCuda();

// Of the current device; "" and 0 where CUDA is not loaded.
std::string CudaDeviceName();
int64_t CudaDeviceMemoryBytes();
// Most bytes that tensors have held on the device since the process began.
int64_t CudaPeakMemoryBytes();
// Free and all memory of the current device, by the driver; zeros where CUDA is not loaded.
struct CudaMemory {
  int64_t free_bytes = 0;
  int64_t total_bytes = 0;
};
CudaMemory CudaMemoryInfo();
// Most bytes that the process may have had on the device: what libtorch's allocator had at most,
// and what of the device's other memory is in use now (contexts, libraries, other processes).
int64_t CudaPeakUsedBytes();
// Waits until the device has finished all work; does nothing where CUDA is not loaded.
absl::Status SynchronizeCuda();

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_CUDA_CUDA_RUNTIME_H_
