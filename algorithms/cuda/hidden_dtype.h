// The dtypes of hidden states that kernels take. C++17, no torch.
#ifndef PTQ_ALGORITHMS_CUDA_HIDDEN_DTYPE_H_
#define PTQ_ALGORITHMS_CUDA_HIDDEN_DTYPE_H_

#include <cstdint>

namespace ptq {

enum class HiddenDtype { kFloat32, kBFloat16, kHalf };

// 16-bit hidden values that kernels move at once: they take widths of whole packs.
constexpr int64_t kHiddenPack = 8;

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_CUDA_HIDDEN_DTYPE_H_
