#include "worker/host_staging.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace ptq {
namespace {

QuantizedModule ModuleOn(at::Device device) {
  QuantizedModule module;
  module.weight.int_data = at::randint(-8, 8, {6, 32}, at::kChar).to(device);
  module.weight.scale = at::rand({6, 2}, at::kHalf).to(device);
  module.weight.zero_point = at::randint(-8, 8, {6, 2}, at::kInt).to(device);
  return module;
}

TEST(HostStagingTest, WhatLiesOnTheCpuStaysWhereItIs) {
  HostStaging staging(1);
  std::vector<QuantizedModule> modules = {ModuleOn(at::kCPU)};
  const AffineQuantizedTensor before = modules[0].weight;
  staging.Fill(0, modules);
  EXPECT_TRUE(modules[0].weight.int_data.is_same(before.int_data));
  EXPECT_TRUE(modules[0].weight.scale.is_same(before.scale));
  EXPECT_TRUE(modules[0].weight.zero_point.is_same(before.zero_point));
}

}  // namespace
}  // namespace ptq
