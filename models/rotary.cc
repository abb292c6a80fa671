#include "models/rotary.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace ptq {
namespace {

constexpr double kTwoPi = 2 * std::numbers::pi;

// What the frequencies of one table depend on.
struct Shape {
  const RopeConfig& rope;
  int64_t dim = 0;      // coordinates of a head that are rotated
  int64_t trained = 0;  // max_position_embeddings

  int64_t original_length() const {
    return rope.original_max_position_embeddings > 0 ? rope.original_max_position_embeddings
                                                     : trained;
  }
};

Shape ShapeOf(const RopeConfig& rope, const ModelConfig& config) {
  const double dim = static_cast<double>(config.head_dim) * rope.partial_rotary_factor;
  return {rope, static_cast<int64_t>(dim), config.max_position_embeddings};
}

// base^(2i / dim) for i = 0..dim/2-1, the wavelengths over 2 pi.
at::Tensor Wavelengths(double base, int64_t dim) {
  return at::pow(at::Scalar(base), at::arange(0, dim, 2, at::kFloat) / dim);
}

// The base that spreads the frequencies over `length` positions. transformers computes it in
// float32 where the length decides (NTK-aware scaling, "dynamic").
at::Tensor DynamicInverseFrequencies(const Shape& shape, int64_t length) {
  const RopeConfig& rope = shape.rope;
  const int64_t dim = shape.dim;
  const int64_t trained = shape.trained;
  if (length <= trained) {
    return Wavelengths(rope.theta, dim).reciprocal();
  }
  const at::Tensor ratio = at::scalar_tensor(length, at::kLong) * rope.factor / trained;
  const double exponent = static_cast<double>(dim) / static_cast<double>(dim - 2);
  const at::Tensor base = at::pow(ratio - (rope.factor - 1), exponent) * rope.theta;
  return at::pow(base, at::arange(0, dim, 2, at::kFloat) / dim).reciprocal();
}

// Long wavelengths are divided by the factor, short ones kept, those between interpolated.
at::Tensor Llama3InverseFrequencies(const Shape& shape) {
  const RopeConfig& rope = shape.rope;
  const auto trained = static_cast<double>(shape.original_length());
  const double longest = trained / rope.low_freq_factor;
  const double shortest = trained / rope.high_freq_factor;
  const at::Tensor inverse = Wavelengths(rope.theta, shape.dim).reciprocal();
  const at::Tensor wavelength = inverse.reciprocal() * kTwoPi;
  const at::Tensor scaled = at::where(wavelength > longest, inverse / rope.factor, inverse);
  const at::Tensor smooth = (wavelength.reciprocal() * trained - rope.low_freq_factor) /
                            (rope.high_freq_factor - rope.low_freq_factor);
  const at::Tensor smoothed = (1 - smooth) * scaled / rope.factor + smooth * scaled;
  const at::Tensor between = at::logical_and(wavelength >= shortest, wavelength <= longest);
  return at::where(between, smoothed, scaled);
}

// The (fractional) index of the frequency that turns `rotations` times within the trained length.
double YarnCorrectionIndex(const Shape& shape, double rotations) {
  const auto dim = static_cast<double>(shape.dim);
  const auto original = static_cast<double>(shape.original_length());
  return dim * std::log(original / (rotations * kTwoPi)) / (2 * std::log(shape.rope.theta));
}

// Frequencies that turn often are kept, slow ones are divided by the factor, with a linear ramp
// between.
at::Tensor YarnInverseFrequencies(const Shape& shape) {
  const RopeConfig& rope = shape.rope;
  double low = YarnCorrectionIndex(shape, rope.beta_fast);
  double high = YarnCorrectionIndex(shape, rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(shape.dim - 1));
  if (low == high) {
    high += 0.001;  // transformers' guard against an empty ramp
  }
  const at::Tensor ramp =
      ((at::arange(shape.dim / 2, at::kFloat) - low) / (high - low)).clamp(0, 1);
  const at::Tensor wavelengths = Wavelengths(rope.theta, shape.dim);
  const at::Tensor kept = wavelengths.reciprocal();
  const at::Tensor stretched = (wavelengths * rope.factor).reciprocal();
  const at::Tensor keep = 1 - ramp;
  return stretched * (1 - keep) + kept * keep;
}

double YarnAttentionFactor(const RopeConfig& rope) {
  if (rope.attention_factor != 0) {
    return rope.attention_factor;
  }
  if (rope.mscale != 0 && rope.mscale_all_dim != 0) {
    return YarnMagnitude(rope.factor, rope.mscale) /
           YarnMagnitude(rope.factor, rope.mscale_all_dim);
  }
  return YarnMagnitude(rope.factor, 1.0);
}

// Each frequency has divisors of its own, for sequences within the trained length and beyond it.
at::Tensor LongRopeInverseFrequencies(const Shape& shape, int64_t length) {
  const RopeConfig& rope = shape.rope;
  const at::Tensor divisors = at::tensor(
      length > shape.original_length() ? rope.long_factor : rope.short_factor, at::kFloat);
  return (divisors * Wavelengths(rope.theta, shape.dim)).reciprocal();
}

double LongRopeAttentionFactor(const Shape& shape) {
  const RopeConfig& rope = shape.rope;
  if (rope.attention_factor != 0) return rope.attention_factor;
  if (rope.factor <= 1) return 1;
  return std::sqrt(1 +
                   std::log(rope.factor) / std::log(static_cast<double>(shape.original_length())));
}

}  // namespace

double YarnMagnitude(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

RotaryFrequencies ComputeRotaryFrequencies(const RopeConfig& rope, const ModelConfig& config,
                                           int64_t length) {
  const Shape shape = ShapeOf(rope, config);
  RotaryFrequencies frequencies;
  switch (rope.type) {
    case RopeConfig::Type::kDefault:
      frequencies.inverse = Wavelengths(rope.theta, shape.dim).reciprocal();
      break;
    case RopeConfig::Type::kLinear:
      frequencies.inverse = Wavelengths(rope.theta, shape.dim).reciprocal() / rope.factor;
      break;
    case RopeConfig::Type::kDynamic:
      frequencies.inverse = DynamicInverseFrequencies(shape, length);
      break;
    case RopeConfig::Type::kLlama3:
      frequencies.inverse = Llama3InverseFrequencies(shape);
      break;
    case RopeConfig::Type::kYarn:
      frequencies.inverse = YarnInverseFrequencies(shape);
      frequencies.attention_factor = YarnAttentionFactor(rope);
      break;
    case RopeConfig::Type::kLongRope:
      frequencies.inverse = LongRopeInverseFrequencies(shape, length);
      frequencies.attention_factor = LongRopeAttentionFactor(shape);
      break;
  }
  return frequencies;
}

RotaryTable ComputeRotaryTable(const RopeConfig& rope, const ModelConfig& config, int64_t length,
                               at::ScalarType dtype, at::Device device) {
  const RotaryFrequencies frequencies = ComputeRotaryFrequencies(rope, config, length);
  const at::Tensor angles =
      at::arange(length, at::kFloat).unsqueeze(-1) * frequencies.inverse;  // [T, rotary_dim / 2]
  const at::Tensor both = at::cat({angles, angles}, -1);
  const auto finish = [&](const at::Tensor& values) {
    return (values * frequencies.attention_factor).to(at::TensorOptions(device).dtype(dtype));
  };
  return {finish(both.cos()), finish(both.sin()), nullptr};
}

at::Tensor ApplyRotary(const at::Tensor& states, const RotaryTable& rotary) {
  const int64_t rotated = rotary.cos.size(-1);
  if (rotated < states.size(-1)) {
    return at::cat({ApplyRotary(states.narrow(-1, 0, rotated), rotary),
                    states.narrow(-1, rotated, states.size(-1) - rotated)},
                   -1);
  }
  const int64_t half = rotated / 2;
  const at::Tensor cos = rotary.cos.unsqueeze(1);  // [T, 1, rotary_dim]
  // (x1, x2) -> (-x2, x1) as a roll by half a head with the sign moved to the sine: the same bits
  // in two passes less, forward and backward.
  const at::Tensor sin =
      at::cat({rotary.sin.narrow(-1, 0, half).neg(), rotary.sin.narrow(-1, half, half)}, -1)
          .unsqueeze(1);
  return states * cos + states.roll({half}, {-1}) * sin;
}

at::Tensor ApplyInterleavedRotary(const at::Tensor& states, const RotaryTable& rotary) {
  const int64_t half = states.size(-1) / 2;
  const at::Tensor cos = rotary.cos.narrow(-1, 0, half).unsqueeze(1);  // [T, 1, head_dim / 2]
  const at::Tensor sin = rotary.sin.narrow(-1, 0, half).unsqueeze(1);
  const at::Tensor pairs = states.to(cos.scalar_type()).unflatten(-1, {half, 2});
  const at::Tensor first = pairs.select(-1, 0);
  const at::Tensor second = pairs.select(-1, 1);
  return at::cat({first * cos - second * sin, second * cos + first * sin}, -1)
      .to(states.scalar_type());
}

}  // namespace ptq
