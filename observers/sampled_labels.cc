#include "observers/sampled_labels.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "algorithms/cuda/device_kernels.h"
#include "common/seed.h"

namespace ptq {
namespace {

// The finalizer of MurmurHash3 (Appleby 2011) on int32, in place.
void Mix(at::Tensor& x) {
  const auto shift_xor = [&x](int64_t bits) {
    // Logical shifts: the sign does not come along.
    x.bitwise_xor_(x.__rshift__(bits).bitwise_and_((int64_t{1} << (32 - bits)) - 1));
  };
  shift_xor(16);
  x.mul_(static_cast<int32_t>(0x85ebca6b));
  shift_xor(13);
  x.mul_(static_cast<int32_t>(0xc2b2ae35));
  shift_xor(16);
}

// [n] int32, on the device of `logits` [n, V].
at::Tensor RowKeys(const at::Tensor& logits, uint64_t seed, int64_t first_row) {
  at::Tensor keys = at::empty({logits.size(0)}, at::kInt);
  for (int64_t row = 0; row < keys.size(0); ++row) {
    keys.mutable_data_ptr<int32_t>()[row] =
        static_cast<int32_t>(MixSeed(seed, first_row + row) >> 32);
  }
  return keys.to(logits.device());
}

}  // namespace

at::Tensor SampleLabels(const at::Tensor& logits, uint64_t seed, int64_t first_row) {
  const at::NoGradGuard no_grad;
  at::Tensor columns =
      at::arange(logits.size(1), logits.options().dtype(at::kInt)).mul_(int32_t{0x3c6ef372});
  at::Tensor bits = RowKeys(logits, seed, first_row).unsqueeze(1).bitwise_xor(columns);
  Mix(bits);
  // 23 bits and a half: exact in float32, never 0 or 1.
  at::Tensor noise = bits.bitwise_and_(0x7FFFFF).to(at::kFloat).add_(0.5).div_(8388608.0);
  noise.log_().neg_().log_().neg_();
  return noise.add_(logits).argmax(-1);
}

at::Tensor SampledGradient(const at::Tensor& logits, uint64_t seed, int64_t first_row,
                           at::ScalarType dtype) {
  const at::NoGradGuard no_grad;
  if (logits.is_cuda() && dtype != at::kFloat) {
    const CudaApi& cuda = CudaKernels();
    const at::Tensor keys = RowKeys(logits, seed, first_row);
    at::Tensor gradient = at::empty(logits.sizes(), logits.options().dtype(dtype));
    CheckCuda(cuda.sampled_gradient({.logits = logits.const_data_ptr<float>(),
                                     .row_keys = keys.const_data_ptr<int32_t>(),
                                     .gradient = gradient.mutable_data_ptr(),
                                     .rows = logits.size(0),
                                     .width = logits.size(1),
                                     .dtype = HiddenDtypeOf(dtype)},
                                    cuda.current_stream()));
    return gradient;
  }
  const at::Tensor labels = SampleLabels(logits, seed, first_row);
  // Comparing instead of scattering: deterministic on every device.
  const at::Tensor columns = at::arange(logits.size(1), labels.options());
  return logits.softmax(-1).sub_(columns.eq(labels.unsqueeze(1)).to(at::kFloat)).to(dtype);
}

}  // namespace ptq
