// Latent attention against an independent formulation in float64: a loop over heads, complex
// rotations, a masked softmax.
#include "models/latent_attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "models/rotary.h"

namespace ptq {
namespace {

constexpr int64_t kWidth = 24;
constexpr int64_t kHeads = 3;
constexpr int64_t kLength = 9;

enum LinearIndex { kQueryDown, kQuery, kKeyValueDown, kKeyValue, kOutput };

RotaryTable Rotary() {
  ModelConfig config;
  config.head_dim = 4;
  config.max_position_embeddings = 64;
  return ComputeRotaryTable(config.rope, config, kLength, at::kFloat, at::kCPU);
}

struct Case {
  LatentAttentionConfig config;
  std::vector<at::Tensor> weights;  // by LinearIndex
  LatentAttention attention;
};

Case MakeCase(int64_t query_rank, int64_t value_head_dim) {
  Case made;
  made.config = {.query_rank = query_rank,
                 .key_value_rank = 7,
                 .plain_head_dim = 6,
                 .rotary_head_dim = 4,
                 .value_head_dim = value_head_dim};
  at::manual_seed(5);
  const int64_t query_input = query_rank > 0 ? query_rank : kWidth;
  made.weights = {at::randn({query_rank, kWidth}) * 0.3,
                  at::randn({kHeads * 10, query_input}) * 0.3, at::randn({7 + 4, kWidth}) * 0.3,
                  at::randn({kHeads * (6 + value_head_dim), 7}) * 0.3,
                  at::randn({kWidth, kHeads * value_head_dim}) * 0.3};
  made.attention = {.config = made.config,
                    .heads = kHeads,
                    .scale = LatentAttentionScale(made.config, {}),
                    .query_down = kQueryDown,
                    .query = kQuery,
                    .key_value_down = kKeyValueDown,
                    .key_value = kKeyValue,
                    .output = kOutput,
                    .query_norm = query_rank > 0 ? at::rand({query_rank}) + 0.5 : at::Tensor(),
                    .key_value_norm = at::rand({7}) + 0.5};
  return made;
}

at::Tensor Norm(const at::Tensor& x, const at::Tensor& weight) {
  return x / (x.square().mean(-1, true) + 1e-6).sqrt() * weight.to(at::kDouble);
}

// [T, 4]: each pair (2i, 2i + 1), or (i, i + 2) unless interleaved, turned by position * theta_i.
at::Tensor Rotate(const at::Tensor& x, bool interleaved) {
  at::Tensor out = x.clone();
  for (int64_t t = 0; t < x.size(0); ++t) {
    for (int64_t i = 0; i < 2; ++i) {
      const double angle =
          static_cast<double>(t) * std::pow(10000.0, -2.0 * static_cast<double>(i) / 4);
      const int64_t first = interleaved ? 2 * i : i;
      const int64_t second = interleaved ? 2 * i + 1 : i + 2;
      const double a = x[t][first].item<double>();
      const double b = x[t][second].item<double>();
      out[t][first] = a * std::cos(angle) - b * std::sin(angle);
      out[t][second] = b * std::cos(angle) + a * std::sin(angle);
    }
  }
  return out;
}

// input [T, D].
at::Tensor Oracle(const Case& of, const at::Tensor& input, double scale) {
  const auto linear = [&](LinearIndex index, const at::Tensor& x) {
    return at::matmul(x, of.weights[index].to(at::kDouble).t());
  };
  at::Tensor query = input;
  if (of.config.query_rank > 0) query = Norm(linear(kQueryDown, input), of.attention.query_norm);
  query = linear(kQuery, query);
  const at::Tensor down = linear(kKeyValueDown, input);
  const at::Tensor up = linear(kKeyValue, Norm(down.narrow(1, 0, 7), of.attention.key_value_norm));
  const at::Tensor turned_key = Rotate(down.narrow(1, 7, 4), of.config.interleaved);
  const at::Tensor mask = at::ones({kLength, kLength}, at::kBool).tril();
  const int64_t value_dim = of.config.value_head_dim;
  std::vector<at::Tensor> outputs;
  for (int64_t head = 0; head < kHeads; ++head) {
    const at::Tensor q = query.narrow(1, head * 10, 10);
    const at::Tensor kv = up.narrow(1, head * (6 + value_dim), 6 + value_dim);
    const at::Tensor turned = Rotate(q.narrow(1, 6, 4), of.config.interleaved);
    const at::Tensor scores =
        at::matmul(q.narrow(1, 0, 6), kv.narrow(1, 0, 6).t()) + at::matmul(turned, turned_key.t());
    const at::Tensor shares =
        at::softmax(at::where(mask, scores * scale, at::full({}, -1e300, at::kDouble)), -1);
    outputs.push_back(at::matmul(shares, kv.narrow(1, 6, value_dim)));
  }
  return linear(kOutput, at::cat(outputs, 1));
}

double LargestError(const Case& of, double scale) {
  at::manual_seed(8);
  const at::Tensor input = at::randn({2, kLength, kWidth});
  const RotaryTable rotary = Rotary();
  const at::Tensor output = ApplyLatentAttention(
      of.attention, input, rotary,
      [&](size_t index, const at::Tensor& x) { return at::linear(x, of.weights[index]); });
  double largest = 0;
  for (int64_t sample = 0; sample < 2; ++sample) {
    const at::Tensor expected = Oracle(of, input[sample].to(at::kDouble), scale);
    largest = std::max(largest, (output[sample] - expected).abs().max().item<double>());
  }
  return largest;
}

const double kPlainScale = 1 / std::sqrt(10.0);

TEST(LatentAttentionTest, DirectQueries) {
  EXPECT_LT(LargestError(MakeCase(/*query_rank=*/0, /*value_head_dim=*/5), kPlainScale), 2e-6);
}

TEST(LatentAttentionTest, QueriesOfARank) {
  EXPECT_LT(LargestError(MakeCase(/*query_rank=*/8, /*value_head_dim=*/5), kPlainScale), 2e-6);
}

TEST(LatentAttentionTest, ValuesMayBeWiderThanKeys) {
  EXPECT_LT(LargestError(MakeCase(/*query_rank=*/0, /*value_head_dim=*/13), kPlainScale), 2e-6);
}

TEST(LatentAttentionTest, RotatedPairsMayLieHalfAHeadApart) {
  Case made = MakeCase(0, 5);
  made.config.interleaved = made.attention.config.interleaved = false;
  EXPECT_LT(LargestError(made, kPlainScale), 2e-6);
}

// DeepSeek-V3's config.json: factor 40, mscale_all_dim 1.
TEST(LatentAttentionTest, YarnsMagnitudeIsSquaredIntoTheScale) {
  Case made = MakeCase(0, 5);
  RopeConfig rope;
  rope.type = RopeConfig::Type::kYarn;
  rope.factor = 40;
  EXPECT_DOUBLE_EQ(LatentAttentionScale(made.config, rope), kPlainScale);
  rope.mscale_all_dim = 1;
  const double magnitude = 0.1 * std::log(40.0) + 1;
  made.attention.scale = LatentAttentionScale(made.config, rope);
  EXPECT_DOUBLE_EQ(made.attention.scale, kPlainScale * magnitude * magnitude);
  EXPECT_LT(LargestError(made, kPlainScale * magnitude * magnitude), 2e-6);
}

TEST(LatentAttentionTest, HalfPrecisionStatesMayBeRotatedInFloat32) {
  at::manual_seed(2);
  const at::Tensor states = at::randn({1, kLength, 2, 4}).to(at::kBFloat16);
  const RotaryTable rotary = Rotary();
  const at::Tensor rotated = ApplyInterleavedRotary(states, rotary);
  EXPECT_EQ(rotated.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(
      rotated.equal(ApplyInterleavedRotary(states.to(at::kFloat), rotary).to(at::kBFloat16)));
}

}  // namespace
}  // namespace ptq
