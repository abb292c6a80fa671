// Errors of layer outputs against direct computations in float64, and which samples they are of.
#include "observers/output_error.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "models/decoder_model.h"
#include "observers/block_inputs.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/tiny_llama.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::StatusIs;

class OutputErrorTest : public ::testing::Test {
 protected:
  void Load(at::ScalarType dtype, int64_t samples, int64_t length) {
    config_.max_position_embeddings = length;
    checkpoint_ = testing::RandomCheckpoint(config_, 5, dtype);
    PTQ_ASSERT_OK_AND_ASSIGN(model_, DecoderModel::Create(config_, checkpoint_, {.dtype = dtype}));
    PTQ_ASSERT_OK_AND_ASSIGN(block_, model_->LoadBlock(0));
    rotary_ = model_->MakeRotaryTable(length);
    inputs_.quantized = at::randn({samples, length, config_.hidden_size}).to(dtype);
    observed_.block = block_.get();
    observed_.rotary = &rotary_;
    observed_.inputs = &inputs_;
  }

  // All inputs of linear `index` for samples `indices`, [n, K] float64.
  at::Tensor InputsOf(size_t index, const std::vector<int64_t>& indices) {
    at::Tensor seen;
    block_->Forward(inputs_.quantized.index_select(0, at::tensor(indices)), rotary_,
                    [&](size_t i, const at::Tensor& input) {
                      if (i == index) seen = input.flatten(0, 1).to(at::kDouble);
                      const Linear& linear = block_->linears()[i];
                      return ApplyLinear(linear, linear.weight, input);
                    });
    return seen;
  }

  at::Tensor Rounded(size_t index, double steps) const {
    return (block_->linears()[index].weight * steps).round() / steps;
  }

  // Checks every layer's figures for two candidates against means over samples `indices`.
  void ExpectErrorsOf(const std::vector<int64_t>& indices, double tolerance) {
    PTQ_ASSERT_OK_AND_ASSIGN(const std::vector<OutputError> errors,
                             MeasureOutputErrors(observed_, [&](size_t i) {
                               return std::vector<at::Tensor>{Rounded(i, 8), Rounded(i, 4)};
                             }));
    ASSERT_EQ(errors.size(), block_->linears().size());
    for (size_t i = 0; i < errors.size(); ++i) {
      SCOPED_TRACE(block_->linears()[i].module);
      const at::Tensor inputs = InputsOf(i, indices);
      const at::Tensor weight = block_->linears()[i].weight.to(at::kDouble);
      const auto mean_square = [&](const at::Tensor& matrix) {
        return inputs.mm(matrix.to(at::kDouble).t()).square().mean().item<double>();
      };
      EXPECT_EQ(errors[i].tokens, inputs.size(0));
      const double size = mean_square(weight);
      EXPECT_NEAR(errors[i].mean_square, size, tolerance * size);
      ASSERT_EQ(errors[i].mse.size(), 2);
      for (size_t candidate : {0, 1}) {
        const double error = mean_square(weight - Rounded(i, candidate == 0 ? 8 : 4));
        EXPECT_GT(error, 0);
        EXPECT_NEAR(errors[i].mse[candidate], error, tolerance * error);
      }
    }
  }

  ModelConfig config_ = testing::TinyLlamaConfig();  // with biases, which are no part of an error
  testing::InMemoryCheckpoint checkpoint_;
  std::unique_ptr<DecoderModel> model_;
  std::unique_ptr<DecoderBlock> block_;
  RotaryTable rotary_;
  BlockInputs inputs_;
  ObservedBlock observed_;
};

TEST_F(OutputErrorTest, OfFewTokensAllAreMeasured) {
  Load(at::kFloat, 5, 8);
  ExpectErrorsOf({0, 1, 2, 3, 4}, 1e-5);
}

// 8 bits of mantissa in the products and in what they are compared with: some 1e-3.
TEST_F(OutputErrorTest, HalfPrecisionRoundsProductsAlone) {
  Load(at::kBFloat16, 5, 64);
  ExpectErrorsOf({0, 1, 2, 3, 4}, 3e-3);
}

TEST_F(OutputErrorTest, OfManySamplesSomeAreTakenEvenly) {
  Load(at::kFloat, 8, 1365);  // three of them make 4095 tokens
  ExpectErrorsOf({0, 2, 5}, 1e-5);
}

TEST_F(OutputErrorTest, ALongSampleIsTakenWhole) {
  Load(at::kFloat, 2, 4100);
  ExpectErrorsOf({0}, 1e-5);
}

TEST_F(OutputErrorTest, ItsSamplesAreAboutFourThousandTokens) {
  EXPECT_EQ(ErrorSamples(128, 512), 8);
  EXPECT_EQ(ErrorSamples(128, 2048), 2);
  EXPECT_EQ(ErrorSamples(16, 128), 16);
  EXPECT_EQ(ErrorSamples(3, 8192), 1);
}

TEST_F(OutputErrorTest, EqualWeightsHaveNoErrorAndNoCandidatesNoFigures) {
  Load(at::kFloat, 2, 8);
  PTQ_ASSERT_OK_AND_ASSIGN(const std::vector<OutputError> errors,
                           MeasureOutputErrors(observed_, [&](size_t i) {
                             std::vector<at::Tensor> candidates;
                             if (i != 2) candidates.push_back(block_->linears()[i].weight);
                             return candidates;
                           }));
  EXPECT_EQ(errors[0].mse, std::vector<double>{0});
  EXPECT_GT(errors[0].mean_square, 0);
  EXPECT_TRUE(errors[2].mse.empty());
  EXPECT_EQ(errors[2].mean_square, 0);
  EXPECT_EQ(errors[2].tokens, 16);
}

TEST_F(OutputErrorTest, EqualCallsGiveEqualBits) {
  Load(at::kFloat, 3, 100);
  const auto measure = [&] {
    return MeasureOutputErrors(observed_,
                               [&](size_t i) { return std::vector<at::Tensor>{Rounded(i, 8)}; });
  };
  PTQ_ASSERT_OK_AND_ASSIGN(const std::vector<OutputError> first, measure());
  PTQ_ASSERT_OK_AND_ASSIGN(const std::vector<OutputError> second, measure());
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(first[i].mse, second[i].mse);
    EXPECT_EQ(first[i].mean_square, second[i].mean_square);
  }
}

TEST_F(OutputErrorTest, AnErrorNamesTheBlock) {
  Load(at::kFloat, 2, 8);
  EXPECT_THAT(MeasureOutputErrors(observed_,
                                  [](size_t) {
                                    return std::vector<at::Tensor>{at::ones({3, 5})};
                                  }),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("model.layers.0")));
}

}  // namespace
}  // namespace ptq
