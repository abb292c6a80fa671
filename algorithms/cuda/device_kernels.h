// Access to the CUDA kernels for code that has a CUDA tensor in its hands.
#ifndef PTQ_ALGORITHMS_CUDA_DEVICE_KERNELS_H_
#define PTQ_ALGORITHMS_CUDA_DEVICE_KERNELS_H_

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include "algorithms/cuda/cuda_runtime.h"
#include "algorithms/cuda/hidden_dtype.h"

namespace ptq {

inline const CudaApi& CudaKernels() {
  const CudaApi* api = LoadedCuda();
  TORCH_CHECK(api != nullptr, "tensors on CUDA need LoadCuda() first");
  return *api;
}

inline void CheckCuda(int error) {
  TORCH_CHECK(error == 0, "CUDA kernel: ", CudaKernels().error_string(error));
}

// Throws c10::Error for other dtypes than float32, bfloat16 and float16.
inline HiddenDtype HiddenDtypeOf(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return HiddenDtype::kFloat32;
    case at::kBFloat16:
      return HiddenDtype::kBFloat16;
    case at::kHalf:
      return HiddenDtype::kHalf;
    default:
      TORCH_CHECK_NOT_IMPLEMENTED(
          false, "hidden states are float32, bfloat16 or float16 here, not ", dtype);
  }
}

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_CUDA_DEVICE_KERNELS_H_
