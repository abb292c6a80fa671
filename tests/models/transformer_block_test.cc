// The block in Llama's shape against an independent formulation: explicit loops over heads, a
// masked softmax, everything in float64.
#include "models/transformer_block.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "models/decoder_model.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/tiny_llama.h"

namespace ptq {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class TransformerBlockTest : public ::testing::Test {
 protected:
  void SetUp() override {
    checkpoint_ = testing::RandomCheckpoint(config_, 7);
    PTQ_ASSERT_OK_AND_ASSIGN(model_, DecoderModel::Create(config_, checkpoint_, {}));
    PTQ_ASSERT_OK_AND_ASSIGN(block_, model_->LoadBlock(1));
    rotary_ = model_->MakeRotaryTable(kLength);
    at::manual_seed(3);
    hidden_ = at::randn({2, kLength, config_.hidden_size});
  }

  static constexpr int64_t kLength = 9;
  ModelConfig config_ = testing::TinyLlamaConfig();
  testing::InMemoryCheckpoint checkpoint_;
  std::unique_ptr<DecoderModel> model_;
  std::unique_ptr<DecoderBlock> block_;
  RotaryTable rotary_;
  at::Tensor hidden_;
};

// `tensors`: a block's parameters in float64, by their names within it.
at::Tensor Oracle(const ModelConfig& config, std::map<std::string, at::Tensor> tensors,
                  const at::Tensor& hidden) {
  const auto linear = [&](const std::string& module, const at::Tensor& input) {
    return at::matmul(input, tensors[module + ".weight"].t()) + tensors[module + ".bias"];
  };
  const auto norm = [&](const std::string& module, const at::Tensor& input) {
    const at::Tensor square = (input * input).mean({-1}, true);
    return input / (square + config.norm_eps).sqrt() * tensors[module + ".weight"];
  };
  const int64_t length = hidden.size(1);
  const int64_t dim = config.head_dim;
  const at::Tensor positions = at::arange(length, at::kDouble).unsqueeze(1);
  const at::Tensor angles =
      positions * at::pow(config.rope.theta, at::arange(dim / 2, at::kDouble) * (-2.0 / dim));
  const auto rotate = [&](const at::Tensor& head) {
    const at::Tensor x = head.narrow(-1, 0, dim / 2);
    const at::Tensor y = head.narrow(-1, dim / 2, dim / 2);
    return at::cat({x * angles.cos() - y * angles.sin(), y * angles.cos() + x * angles.sin()}, -1);
  };

  const at::Tensor input = norm("input_layernorm", hidden);
  const at::Tensor query = linear("self_attn.q_proj", input);
  const at::Tensor key = linear("self_attn.k_proj", input);
  const at::Tensor value = linear("self_attn.v_proj", input);
  const at::Tensor future = at::ones({length, length}).triu(1).to(at::kBool);
  std::vector<at::Tensor> heads;
  for (int64_t head = 0; head < config.num_attention_heads; ++head) {
    const int64_t shared = head * config.num_key_value_heads / config.num_attention_heads;
    const at::Tensor q = rotate(query.narrow(-1, head * dim, dim));
    const at::Tensor k = rotate(key.narrow(-1, shared * dim, dim));
    const at::Tensor scores = at::matmul(q, k.transpose(1, 2)) / std::sqrt(dim);
    heads.push_back(at::matmul(scores.masked_fill(future, -INFINITY).softmax(-1),
                               value.narrow(-1, shared * dim, dim)));
  }
  const at::Tensor attended = hidden + linear("self_attn.o_proj", at::cat(heads, -1));
  const at::Tensor mlp = norm("post_attention_layernorm", attended);
  const at::Tensor gate = linear("mlp.gate_proj", mlp);
  return attended + linear("mlp.down_proj", gate * gate.sigmoid() * linear("mlp.up_proj", mlp));
}

std::map<std::string, at::Tensor> OracleTensors(const testing::InMemoryCheckpoint& checkpoint,
                                                const std::string& block) {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, tensor] : checkpoint.tensors) {
    if (name.rfind(block + ".", 0) == 0) {
      tensors[name.substr(block.size() + 1)] = tensor.to(at::kDouble);
    }
  }
  return tensors;
}

TEST_F(TransformerBlockTest, EqualsTheIndependentFormulation) {
  const at::Tensor expected =
      Oracle(config_, OracleTensors(checkpoint_, "model.layers.1"), hidden_.to(at::kDouble));
  const at::Tensor output = block_->Forward(hidden_, rotary_);
  EXPECT_LT((output.to(at::kDouble) - expected).abs().max().item<double>(), 2e-5);
}

TEST_F(TransformerBlockTest, LaterTokensDoNotChangeEarlierOutputs) {
  at::Tensor changed = hidden_.clone();
  changed.select(1, 5).add_(1);
  const at::Tensor before = block_->Forward(hidden_, rotary_);
  const at::Tensor after = block_->Forward(changed, rotary_);
  EXPECT_TRUE(before.narrow(1, 0, 5).equal(after.narrow(1, 0, 5)));
  for (int64_t position = 5; position < kLength; ++position) {
    EXPECT_FALSE(before.select(1, position).equal(after.select(1, position))) << position;
  }
}

TEST_F(TransformerBlockTest, EveryLinearIsAppliedOnceInTableOrder) {
  std::vector<std::string> modules;
  std::vector<const at::TensorImpl*> inputs;
  block_->Forward(hidden_, rotary_, [&](size_t index, const at::Tensor& input) {
    const Linear& linear = block_->linears()[index];
    modules.push_back(linear.module.substr(block_->name().size() + 1));
    inputs.push_back(input.unsafeGetTensorImpl());
    return ApplyLinear(linear, linear.weight, input);
  });
  EXPECT_THAT(modules,
              ElementsAre("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                          "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"));
  ASSERT_EQ(block_->linears().size(), modules.size());
  for (size_t i = 0; i < modules.size(); ++i) {
    EXPECT_EQ(block_->linears()[i].module, "model.layers.1." + modules[i]);
  }
  // Observers sum what layers share once, by the tensor's identity.
  EXPECT_EQ(inputs[0], inputs[1]);
  EXPECT_EQ(inputs[0], inputs[2]);
  EXPECT_EQ(inputs[4], inputs[5]);
}

TEST_F(TransformerBlockTest, GradientsOfReplacedWeightsEqualThoseOfTheIndependentFormulation) {
  std::map<std::string, at::Tensor> tensors = OracleTensors(checkpoint_, "model.layers.1");
  std::vector<at::Tensor> weights;
  for (const Linear& linear : block_->linears()) {
    weights.push_back((linear.weight * 1.01).detach().requires_grad_());
    tensors[linear.module.substr(block_->name().size() + 1) + ".weight"] =
        weights.back().detach().to(at::kDouble).requires_grad_();
  }
  const at::Tensor direction = at::randn_like(hidden_);
  const at::Tensor output =
      block_->Forward(hidden_, rotary_, [&](size_t index, const at::Tensor& input) {
        return ApplyLinear(block_->linears()[index], weights[index], input);
      });
  (output * direction).sum().backward();
  (Oracle(config_, tensors, hidden_.to(at::kDouble)) * direction).sum().backward();
  for (size_t i = 0; i < weights.size(); ++i) {
    const std::string module = block_->linears()[i].module.substr(block_->name().size() + 1);
    const at::Tensor expected = tensors[module + ".weight"].grad();
    ASSERT_TRUE(weights[i].grad().defined()) << module;
    const double error = (weights[i].grad() - expected).abs().max().item<double>();
    EXPECT_LT(error, 1e-5 * expected.abs().max().item<double>()) << module;
  }
}

TEST_F(TransformerBlockTest, BiaslessBlocksHaveNoBias) {
  config_.attention_bias = false;
  config_.mlp_bias = false;
  PTQ_ASSERT_OK_AND_ASSIGN(model_, DecoderModel::Create(config_, checkpoint_, {}));
  PTQ_ASSERT_OK_AND_ASSIGN(block_, model_->LoadBlock(1));
  auto tensors = OracleTensors(checkpoint_, "model.layers.1");
  for (const Linear& linear : block_->linears()) {
    EXPECT_FALSE(linear.bias.defined());
    tensors[linear.module.substr(block_->name().size() + 1) + ".bias"].zero_();
  }
  const at::Tensor expected = Oracle(config_, tensors, hidden_.to(at::kDouble));
  EXPECT_LT((block_->Forward(hidden_, rotary_) - expected).abs().max().item<double>(), 2e-5);
}

// The shape that the kernels know is seen by options and tensors, whatever the family's name.
TEST_F(TransformerBlockTest, TheCommonShapeIsThatOfTheOptions) {
  const auto has_parts = [&](const ModelConfig& config, int64_t length = kLength) {
    const auto checkpoint = testing::RandomCheckpoint(config, 7);
    const auto model = DecoderModel::Create(config, checkpoint, {});
    EXPECT_THAT(model, testing::IsOk());
    const auto block = (*model)->LoadBlock(1);
    EXPECT_THAT(block, testing::IsOk());
    return (*block)->gated_parts(length).has_value();
  };
  const auto with = [&](const std::function<void(ModelConfig&)>& change) {
    ModelConfig config = config_;
    change(config);
    return has_parts(config);
  };
  EXPECT_TRUE(has_parts(config_));
  for (const char* type : {"mistral", "qwen2", "granite"}) {
    EXPECT_TRUE(with([&](ModelConfig& config) { config.model_type = type; })) << type;
  }
  for (const char* type : {"qwen3", "olmo2", "gemma2", "phi3"}) {
    EXPECT_FALSE(with([&](ModelConfig& config) { config.model_type = type; })) << type;
  }
  EXPECT_FALSE(with([](ModelConfig& config) { config.residual_multiplier = 0.5; }));
  EXPECT_FALSE(with([](ModelConfig& config) { config.attention.scale = 0.5; }));
  EXPECT_FALSE(with([](ModelConfig& config) { config.attention.soft_cap = 9; }));
  EXPECT_FALSE(with([](ModelConfig& config) { config.activation = Activation::kGelu; }));
  EXPECT_FALSE(with([](ModelConfig& config) { config.norm = NormKind::kRmsPlusOne; }));
  EXPECT_FALSE(with([](ModelConfig& config) { config.rope.partial_rotary_factor = 0.5; }));
  EXPECT_FALSE(with([](ModelConfig& config) { config.parallel_residual = true; }));
  ModelConfig windowed = config_;
  windowed.attention.sliding_window = kLength;
  windowed.attention.sliding = {false, true};
  EXPECT_TRUE(has_parts(windowed, kLength));
  EXPECT_FALSE(has_parts(windowed, kLength + 1));
}

TEST_F(TransformerBlockTest, AMissingPartIsNamed) {
  const BlockWeights none("model.layers.0", config_.norm, config_.norm_eps);
  EXPECT_THAT(TransformerBlock::Create(config_, 0, none),
              testing::StatusIs(absl::StatusCode::kInvalidArgument,
                                HasSubstr("model.layers.0 has no query projection")));
}

}  // namespace
}  // namespace ptq
