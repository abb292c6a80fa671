// Steps that replay a captured graph against steps that run one by one. Needs an NVIDIA GPU.
#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "algorithms/auto_round/auto_round.h"
#include "algorithms/cuda/cuda_runtime.h"
#include "tests/algorithms/auto_round/tiny_block.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::ptq::testing::IsOk;
using ::ptq::testing::SameRecords;
using ::ptq::testing::TinyBlock;
using ::ptq::testing::TinyCase;

// Another block that waits for the device in the middle of its pass, which no capture allows.
class WaitingBlock final : public DecoderBlock {
 public:
  explicit WaitingBlock(const TinyBlock& block) : block_(block), linears_(block.linears()) {}
  const std::string& name() const override { return block_.name(); }
  const std::vector<Linear>& linears() const override { return linears_; }
  std::vector<Linear>& mutable_linears() override { return linears_; }
  std::optional<GatedBlockParts> gated_parts(int64_t) const override { return std::nullopt; }

 private:
  at::Tensor ForwardByTensors(const at::Tensor& hidden, const RotaryTable& rotary,
                              const LinearFunction& apply) const override {
    TORCH_CHECK(hidden.flatten()[0].item<float>() < 1e30);
    return block_.Forward(hidden, rotary, apply);
  }

  const TinyBlock& block_;
  std::vector<Linear> linears_;
};

TEST(StepGraphTest, GraphAndSingleStepsGiveTheSameBytes) {
  ASSERT_THAT(LoadCuda(), IsOk());
  for (const AutoRoundMethod method : {AutoRoundMethod::kPaper, AutoRoundMethod::kLearnedScale}) {
    TinyCase input(at::kCUDA, at::kBFloat16, /*samples=*/16, /*length=*/32, /*width=*/64,
                   /*inner=*/128);
    AutoRoundOptions options;
    options.method = method;
    options.iterations = 40;
    AutoRoundBlockQuantizer quantizer(at::kBFloat16, options);
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock graph, quantizer.QuantizeBlock(input.Request()));
    EXPECT_EQ(graph.tuning_path, "autograd");

    const WaitingBlock waiting(input.block);
    input.observed.block = &waiting;
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock single, quantizer.QuantizeBlock(input.Request()));
    EXPECT_EQ(single.tuning_path, "autograd, no graph");
    EXPECT_TRUE(SameRecords(graph, single));
    EXPECT_EQ(graph.loss_curve, single.loss_curve);

    // The memory that graphs share is as good after the capture that failed.
    input.observed.block = &input.block;
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedBlock again, quantizer.QuantizeBlock(input.Request()));
    EXPECT_EQ(again.tuning_path, "autograd");
    EXPECT_TRUE(SameRecords(graph, again));
  }
}

}  // namespace
}  // namespace ptq
