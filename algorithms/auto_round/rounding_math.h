// The arithmetic of Auto-Round on single values and groups (auto_round/data_type/int.py), shared by
// the CPU loops and the CUDA kernels. C++17, no torch.
//
// Every function is exact to the last bit on every target as long as the compiler does not contract
// a * b + c into one rounding: files that include this are built with -ffp-contract=off or
// -fmad=false.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_ROUNDING_MATH_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_ROUNDING_MATH_H_

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define PTQ_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PTQ_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace ptq::rounding {

PTQ_HOST_DEVICE uint32_t BitsOf(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}
PTQ_HOST_DEVICE float FloatOf(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// As the branches of a vector select: `b` where the comparison is false or not a number is
// involved.
PTQ_HOST_DEVICE float Smaller(float a, float b) { return a < b ? a : b; }
PTQ_HOST_DEVICE float Larger(float a, float b) { return a > b ? a : b; }
PTQ_HOST_DEVICE float Clamp(float x, float lowest, float highest) {
  return Smaller(Larger(x, lowest), highest);
}
PTQ_HOST_DEVICE float Sign(float x) { return (x > 0.0f ? 1.0f : 0.0f) - (x < 0.0f ? 1.0f : 0.0f); }

// Half to even, for |x| < 2^22.
PTQ_HOST_DEVICE float RoundSmallHalfEven(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: its unit in the last place is 1
  return (x + kMagic) - kMagic;
}
// For any x: beyond 2^20 the value is clamped first, which no code range reaches.
PTQ_HOST_DEVICE float RoundHalfEven(float x) {
  return RoundSmallHalfEven(Clamp(x, -1048576.0f, 1048576.0f));
}

// The nearest bfloat16, ties to even. Finite x.
PTQ_HOST_DEVICE float RoundToBFloat16(float x) {
  const uint32_t bits = BitsOf(x);
  return FloatOf((bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u);
}
// The nearest float16, ties to even, subnormals included; saturates at 65504.
PTQ_HOST_DEVICE float RoundToHalf(float x) {
  const uint32_t sign = BitsOf(x) & 0x80000000u;
  const uint32_t magnitude = BitsOf(x) ^ sign;
  const float normal = FloatOf((magnitude + 0xFFFu + ((magnitude >> 13) & 1u)) & 0xFFFFE000u);
  const float subnormal = (FloatOf(magnitude) + 0.5f) - 0.5f;  // 0.5's last place is 2^-24
  const float rounded = FloatOf(magnitude) < 6.103515625e-05f ? subnormal : normal;
  return FloatOf(BitsOf(Smaller(rounded, 65504.0f)) | sign);
}

// How a weight element is stored, and as which dtype a loader would see its decoded value.
struct Float32 {
  using Word = float;
  static PTQ_HOST_DEVICE float Load(Word word) { return word; }
  static PTQ_HOST_DEVICE Word Store(float x) { return x; }
};
struct BFloat16 {
  using Word = uint16_t;
  static PTQ_HOST_DEVICE float Load(Word word) {
    return FloatOf(static_cast<uint32_t>(word) << 16);
  }
  static PTQ_HOST_DEVICE Word Store(float x) {  // x is a bfloat16 value
    return static_cast<Word>(BitsOf(x) >> 16);
  }
};
struct Half {
  using Word = uint16_t;
  static PTQ_HOST_DEVICE float Load(Word word) {
    const uint32_t bits = (word & 0x7FFFu) << 13;
    const float finite = FloatOf(bits) * 5.192296858534828e+33f;  // 2^112
    const uint32_t magnitude = finite < 65536.0f ? BitsOf(finite) : bits | 0x7F800000u;
    return FloatOf(magnitude | (word & 0x8000u) << 16);
  }
  static PTQ_HOST_DEVICE Word Store(float x) {  // x is a float16 value
    const uint32_t sign = BitsOf(x) & 0x80000000u;
    const float magnitude = FloatOf(BitsOf(x) ^ sign) * 1.925929944387236e-34f;  // 2^-112
    return static_cast<Word>(BitsOf(magnitude) >> 13 | sign >> 16);
  }
};
struct Unrounded {
  static PTQ_HOST_DEVICE float Round(float x) { return x; }
};
struct RoundedToBFloat16 {
  static PTQ_HOST_DEVICE float Round(float x) { return RoundToBFloat16(x); }
};
struct RoundedToHalf {
  static PTQ_HOST_DEVICE float Round(float x) { return RoundToHalf(x); }
};

// Integer range of a scheme. Asymmetric codes are unsigned here; storage subtracts 2^(bits-1).
struct CodeRange {
  float lowest;
  float highest;
};
PTQ_HOST_DEVICE CodeRange RangeOf(int bits, bool symmetric) {
  const float half = static_cast<float>(1 << (bits - 1));
  return symmetric ? CodeRange{-half, half - 1.0f} : CodeRange{0.0f, 2.0f * half - 1.0f};
}

// The scale's floor, 1e-5 in float16.
constexpr float kSmallestScale = 1.00135803222656250e-05f;
// The nearest float16 scale that is not below the floor, with the sign kept; zero becomes positive.
PTQ_HOST_DEVICE float StoredScale(float raw) {
  const float scale = RoundToHalf(raw);
  return scale < 0.0f ? Smaller(scale, -kSmallestScale) : Larger(scale, kSmallestScale);
}

struct GroupParameters {
  float scale;       // a float16 value
  float zero_point;  // 0 when symmetric
  bool on_floor;     // the scale is the floor's, and does not follow alpha and beta
};

// From a group's extremes, minimum <= 0 <= maximum. Symmetric: the dominating side (the positive
// one at a tie) lands on the lowest code, so that its scale is negative if it is the positive one.
PTQ_HOST_DEVICE GroupParameters ChooseGroupParameters(float minimum, float maximum, float alpha,
                                                      float beta, int bits, bool symmetric) {
  GroupParameters group;
  const float lo = alpha * minimum;
  const float hi = beta * maximum;
  float raw;
  if (symmetric) {
    const float n = -lo;
    raw = (hi < n ? n : -hi) / static_cast<float>(1 << (bits - 1));
  } else {
    raw = (hi - lo) / RangeOf(bits, false).highest;
  }
  const float scale = RoundToHalf(raw);
  group.on_floor = (scale < 0.0f ? -scale : scale) < kSmallestScale;
  group.scale = StoredScale(raw);
  group.zero_point =
      symmetric ? 0.0f
                : Clamp(RoundHalfEven(-lo / group.scale), 0.0f, RangeOf(bits, false).highest);
  return group;
}

// One weight's code. `ratio` is weight / scale.
struct Code {
  float code;    // within the range
  float inside;  // 1 if no clamping was needed, else 0
};
PTQ_HOST_DEVICE Code ChooseCode(float ratio, float value, float zero_point, CodeRange range) {
  const float unclamped = RoundHalfEven(ratio + value) + zero_point;
  const float code = Clamp(unclamped, range.lowest, range.highest);
  return Code{code, unclamped == code ? 1.0f : 0.0f};
}

// What a group's gradient sums to, G being dL/dWq of its elements: the part of dL/dscale that comes
// straight from the codes, sum of G (code - zero_point - [inside] ratio), and the sum of G over the
// clamped elements, through which alone the zero point has a gradient.
struct GroupGradient {
  float scale;
  float clamped;
};

// The group's range factors after one step of signed descent, clamped to [0, 1].
struct RangeFactors {
  float alpha;
  float beta;
};
PTQ_HOST_DEVICE RangeFactors StepRange(RangeFactors factors, float minimum, float maximum,
                                       GroupGradient gradient, GroupParameters group, int bits,
                                       bool symmetric, float learning_rate) {
  const float lo = factors.alpha * minimum;
  const float hi = factors.beta * maximum;
  float alpha_gradient;
  float beta_gradient;
  if (symmetric) {
    const float scale_gradient = group.on_floor ? 0.0f : gradient.scale;
    // scale = sigma max(-lo, hi) / 2^(bits-1); only the dominating side, or both at a tie.
    alpha_gradient = -lo >= hi ? (hi < -lo ? 1.0f : -1.0f) * scale_gradient * -minimum : 0.0f;
    beta_gradient = hi >= -lo ? (hi < -lo ? 1.0f : -1.0f) * scale_gradient * maximum : 0.0f;
  } else {
    // dzp/dscale = lo / scale^2 and dWq/dzp = -scale where clamped.
    const float scale_gradient =
        group.on_floor ? 0.0f : gradient.scale - lo / group.scale * gradient.clamped;
    const float side = scale_gradient / RangeOf(bits, false).highest;
    alpha_gradient = (gradient.clamped - side) * minimum;
    beta_gradient = side * maximum;
  }
  return RangeFactors{Clamp(factors.alpha - learning_rate * Sign(alpha_gradient), 0.0f, 1.0f),
                      Clamp(factors.beta - learning_rate * Sign(beta_gradient), 0.0f, 1.0f)};
}

}  // namespace ptq::rounding

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_ROUNDING_MATH_H_
