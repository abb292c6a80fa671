// Access to the CUDA kernels for code that has a CUDA tensor in its hands.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_DEVICE_KERNELS_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_DEVICE_KERNELS_H_

#include <c10/util/Exception.h>

#include "algorithms/cuda/cuda_runtime.h"

namespace ptq {

inline const CudaApi& CudaKernels() {
  const CudaApi* api = LoadedCuda();
  TORCH_CHECK(api != nullptr, "tensors on CUDA need LoadCuda() first");
  return *api;
}

inline void CheckCuda(int error) {
  TORCH_CHECK(error == 0, "CUDA kernel: ", CudaKernels().error_string(error));
}

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_DEVICE_KERNELS_H_
