// Hessians and importance against direct computations in float64.
#include "observers/linear_observer.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "models/decoder_model.h"
#include "observers/block_inputs.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/tiny_llama.h"

namespace ptq {
namespace {

class LinearObserverTest : public ::testing::Test {
 protected:
  // An intermediate size of 600 takes three panels, the last one narrower.
  LinearObserverTest() { config_.intermediate_size = 600; }

  void Load(at::ScalarType dtype) {
    checkpoint_ = testing::RandomCheckpoint(config_, 5, dtype);
    PTQ_ASSERT_OK_AND_ASSIGN(model_, DecoderModel::Create(config_, checkpoint_, {.dtype = dtype}));
    PTQ_ASSERT_OK_AND_ASSIGN(block_, model_->LoadBlock(0));
    rotary_ = model_->MakeRotaryTable(8);
    inputs_ = at::randn({5, 8, config_.hidden_size}).to(dtype);
  }

  std::vector<LinearStatistics> Observe(int64_t batch, bool hessians = true) {
    LinearObserver observer(*block_, hessians);
    RunBlock(*block_, inputs_, rotary_, batch, observer.Observe());
    return observer.Finish();
  }

  // All inputs of linear `index`, [n, K] float64.
  at::Tensor InputsOf(size_t index, int64_t batch) {
    std::vector<at::Tensor> seen;
    RunBlock(*block_, inputs_, rotary_, batch, [&](size_t i, const at::Tensor& input) {
      if (i == index) {
        seen.push_back(input.flatten(0, 1).to(at::kDouble));
      }
      return ApplyLinear(block_->linears()[i], block_->linears()[i].weight, input);
    });
    return at::cat(seen);
  }

  ModelConfig config_ = testing::TinyLlamaConfig();
  testing::InMemoryCheckpoint checkpoint_;
  std::unique_ptr<DecoderModel> model_;
  std::unique_ptr<DecoderBlock> block_;
  RotaryTable rotary_;
  at::Tensor inputs_;
};

TEST_F(LinearObserverTest, StatisticsEqualTheDirectProducts) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    Load(dtype);
    const std::vector<LinearStatistics> statistics = Observe(2);
    ASSERT_EQ(statistics.size(), block_->linears().size());
    for (size_t i = 0; i < statistics.size(); ++i) {
      const at::Tensor inputs = InputsOf(i, 2);
      const at::Tensor expected = at::matmul(inputs.t(), inputs);
      const at::Tensor& hessian = statistics[i].hessian;
      EXPECT_EQ(hessian.scalar_type(), at::kFloat);
      EXPECT_EQ(statistics[i].tokens, 5 * 8);
      EXPECT_LT((hessian - expected).abs().max().item<double>(),
                1e-6 * expected.abs().max().item<double>())
          << block_->linears()[i].module;
      EXPECT_TRUE(hessian.equal(hessian.t())) << block_->linears()[i].module;
      const at::Tensor& importance = statistics[i].importance;
      EXPECT_EQ(importance.scalar_type(), at::kFloat);
      EXPECT_TRUE(at::allclose(importance.to(at::kDouble), inputs.square().sum(0), 1e-6, 0));
    }
  }
}

TEST_F(LinearObserverTest, LayersWithOneInputShareTheTensor) {
  Load(at::kFloat);
  const std::vector<LinearStatistics> statistics = Observe(2);
  for (const auto member : {&LinearStatistics::hessian, &LinearStatistics::importance}) {
    const auto data = [&](size_t index) { return (statistics[index].*member).data_ptr(); };
    EXPECT_EQ(data(0), data(1));  // q, k
    EXPECT_EQ(data(0), data(2));  // v
    EXPECT_NE(data(0), data(3));  // o
    EXPECT_EQ(data(4), data(5));  // gate, up
    EXPECT_NE(data(4), data(6));  // down
  }
}

TEST_F(LinearObserverTest, HessiansAreForThoseWhoAsk) {
  Load(at::kBFloat16);
  const std::vector<LinearStatistics> with = Observe(2);
  const std::vector<LinearStatistics> without = Observe(2, /*hessians=*/false);
  for (size_t i = 0; i < without.size(); ++i) {
    EXPECT_FALSE(without[i].hessian.defined());
    // The Hessian's diagonal, whose sums have another order.
    EXPECT_TRUE(with[i].importance.equal(with[i].hessian.diagonal()));
    EXPECT_TRUE(at::allclose(without[i].importance, with[i].importance, 1e-6, 0));
    EXPECT_EQ(without[i].tokens, with[i].tokens);
  }
}

// Inputs of more than one slice: 3 wide rows of 2^23 columns where two fill a slice.
TEST_F(LinearObserverTest, RowsBeyondASliceAreCountedToo) {
  Load(at::kFloat);
  LinearObserver observer(*block_);
  const int64_t columns = int64_t{1} << 23;
  observer.Record(0, at::arange(1, 4, at::kFloat).unsqueeze(1).expand({3, columns}));
  const std::vector<LinearStatistics> statistics = observer.Finish();
  EXPECT_EQ(statistics[0].tokens, 3);
  EXPECT_TRUE(statistics[0].importance.equal(at::full({columns}, 1.0f + 4 + 9)));
}

TEST_F(LinearObserverTest, EqualCallsGiveEqualBits) {
  Load(at::kFloat);
  const std::vector<LinearStatistics> first = Observe(3);
  const std::vector<LinearStatistics> second = Observe(3);
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_TRUE(first[i].hessian.equal(second[i].hessian));
    EXPECT_TRUE(first[i].importance.equal(second[i].importance));
  }
}

TEST_F(LinearObserverTest, ALayerThatSawNothingHasNoStatistics) {
  Load(at::kFloat);
  LinearObserver observer(*block_);
  observer.Record(3, at::ones({2, 4}));
  const std::vector<LinearStatistics> statistics = observer.Finish();
  EXPECT_EQ(statistics[3].tokens, 2);
  EXPECT_EQ(statistics[0].tokens, 0);
  EXPECT_FALSE(statistics[0].hessian.defined());
  EXPECT_FALSE(statistics[0].importance.defined());
}

TEST_F(LinearObserverTest, SharingMustNotChangeMidway) {
  Load(at::kFloat);
  LinearObserver observer(*block_);
  const at::Tensor shared = at::ones({2, 4});
  observer.Record(0, shared);
  observer.Record(1, shared);
  observer.Record(0, shared.clone());
  EXPECT_THROW(observer.Record(1, shared.clone()), c10::Error);
}

}  // namespace
}  // namespace ptq
