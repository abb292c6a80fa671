// Quantizes matrices from files, for Python tests that compare with peers. Each line of standard
// input is one request, answered by "done":
//   METHOD BITS GROUP_SIZE symmetric|asymmetric full-range|torchao DTYPE N K WEIGHT OUTPUT
//   [HESSIAN]
// METHOD: rtn, opt-rtn or gptq. DTYPE: float32, bfloat16 or float16, of the raw numbers in WEIGHT.
// HESSIAN: raw float32 [K, K]. Writes OUTPUT.codes (int8), OUTPUT.scale (raw, its own dtype) and
// OUTPUT.zero_point (int32).
#include <ATen/ATen.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "algorithms/gptq/gptq.h"
#include "algorithms/rtn/opt_rtn.h"
#include "algorithms/rtn/rtn.h"
#include "common/file.h"
#include "tests/algorithms/observed_linear.h"

namespace ptq {
namespace {

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "quantize_matrix: %s\n", why.c_str());
  std::exit(1);
}

template <typename T>
T OrFail(absl::StatusOr<T> value) {
  if (!value.ok()) {
    Fail(value.status().ToString());
  }
  return *std::move(value);
}

at::Tensor ReadTensor(const std::string& path, at::IntArrayRef shape, at::ScalarType dtype) {
  const std::string bytes = OrFail(ReadFile(path, int64_t{1} << 34));
  at::Tensor tensor = at::empty(shape, dtype);
  if (bytes.size() != tensor.nbytes()) {
    Fail(path + " has " + std::to_string(bytes.size()) + " bytes");
  }
  std::copy(bytes.begin(), bytes.end(), static_cast<char*>(tensor.mutable_data_ptr()));
  return tensor;
}

void WriteTensor(const std::string& path, const at::Tensor& tensor) {
  const absl::Status status = WriteFileAtomically(
      path, {static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()});
  if (!status.ok()) {
    Fail(status.ToString());
  }
}

AffineQuantizedTensor Quantize(const std::string& method, const at::Tensor& weight,
                               const QuantizationScheme& scheme, const at::Tensor& hessian) {
  testing::ObservedLinears linears;
  LinearStatistics statistics;
  if (hessian.defined()) {
    statistics = {.hessian = hessian, .importance = hessian.diagonal().clone(), .tokens = 1};
  }
  linears.AddWithStatistics("matrix", weight.to(at::kFloat), scheme, statistics);
  std::unique_ptr<BlockQuantizer> quantizer;
  if (method == "rtn") {
    quantizer = std::make_unique<RtnBlockQuantizer>(weight.scalar_type());
  } else if (method == "opt-rtn") {
    quantizer = std::make_unique<OptRtnBlockQuantizer>(weight.scalar_type());
  } else if (method == "gptq") {
    quantizer = std::make_unique<GptqBlockQuantizer>(weight.scalar_type(), GptqOptions());
  } else {
    Fail("unknown method " + method);
  }
  QuantizedBlock block = OrFail(linears.Quantize(*quantizer));
  if (!block.linears[0]->fallback_reason.empty()) {
    Fail(block.linears[0]->fallback_reason);
  }
  return block.linears[0]->weight;
}

void Run(const std::vector<std::string>& args) {
  if (args.size() != 10 && args.size() != 11) {
    Fail("10 or 11 words are needed");
  }
  const QuantizationScheme scheme = {
      .bits = std::stoi(args[1]),
      .group_size = std::stoll(args[2]),
      .symmetric = args[3] == "symmetric",
      .scale_rule = args[4] == "torchao" ? ScaleRule::kTorchao : ScaleRule::kFullRange};
  const at::ScalarType dtype = args[5] == "bfloat16"  ? at::kBFloat16
                               : args[5] == "float16" ? at::kHalf
                                                      : at::kFloat;
  const int64_t rows = std::stoll(args[6]);
  const int64_t columns = std::stoll(args[7]);
  const at::Tensor weight = ReadTensor(args[8], {rows, columns}, dtype);
  const at::Tensor hessian =
      args.size() > 10 ? ReadTensor(args[10], {columns, columns}, at::kFloat) : at::Tensor();
  const AffineQuantizedTensor record = Quantize(args[0], weight, scheme, hessian);
  WriteTensor(args[9] + ".codes", record.int_data);
  WriteTensor(args[9] + ".scale", record.scale);
  WriteTensor(args[9] + ".zero_point", record.zero_point);
}

}  // namespace
}  // namespace ptq

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    ptq::Run({std::istream_iterator<std::string>(words), {}});
    std::cout << "done" << std::endl;
  }
  return 0;
}
