// Tests that run for a range of schemes.
#ifndef PTQ_TESTS_ALGORITHMS_AUTO_ROUND_SCHEME_CASES_H_
#define PTQ_TESTS_ALGORITHMS_AUTO_ROUND_SCHEME_CASES_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <tuple>

#include "common/quantization_scheme.h"

namespace ptq::testing {

using SchemeCase = std::tuple<int, bool, int64_t>;  // bits, symmetric, group size

class SchemeTest : public ::testing::TestWithParam<SchemeCase> {
 protected:
  QuantizationScheme scheme() const {
    const auto [bits, symmetric, group_size] = GetParam();
    return {.bits = bits, .group_size = group_size, .symmetric = symmetric};
  }
};

// "W4SymGroup32".
inline std::string CaseName(const ::testing::TestParamInfo<SchemeCase>& info) {
  const auto [bits, symmetric, group] = info.param;
  return "W" + std::to_string(bits) + (symmetric ? "Sym" : "Asym") +
         (group == QuantizationScheme::kPerTensor    ? "Tensor"
          : group == QuantizationScheme::kPerChannel ? "Channel"
                                                     : "Group" + std::to_string(group));
}

}  // namespace ptq::testing

#endif  // PTQ_TESTS_ALGORITHMS_AUTO_ROUND_SCHEME_CASES_H_
