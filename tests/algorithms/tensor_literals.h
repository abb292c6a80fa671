// Tensors from literals and back, for tests.
#ifndef PTQ_TESTS_ALGORITHMS_TENSOR_LITERALS_H_
#define PTQ_TESTS_ALGORITHMS_TENSOR_LITERALS_H_

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cstdint>
#include <vector>

namespace ptq::testing {

// float32 [rows, values / rows].
inline at::Tensor Matrix(int64_t rows, const std::vector<float>& values) {
  return at::tensor(values).view({rows, -1});
}

// All values in row-major order.
inline std::vector<double> Values(const at::Tensor& tensor) {
  const at::Tensor wide = tensor.to(at::kCPU, at::kDouble).contiguous();
  return {wide.const_data_ptr<double>(), wide.const_data_ptr<double>() + wide.numel()};
}

// Normal float32 numbers from a seed of their own.
inline at::Tensor Random(at::IntArrayRef shape, uint64_t seed) {
  return at::randn(shape, at::detail::createCPUGenerator(seed), at::TensorOptions(at::kFloat));
}

}  // namespace ptq::testing

#endif  // PTQ_TESTS_ALGORITHMS_TENSOR_LITERALS_H_
