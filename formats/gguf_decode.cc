#include "formats/gguf_decode.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/util/Half.h>

#include <atomic>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "formats/weight_packing.h"

namespace ptq {
namespace {

constexpr int64_t kBlock = 32;

float RoundToHalf(float value) { return static_cast<float>(c10::Half(value)); }

// Where a block's values go.
struct Target {
  int8_t* codes;  // signed
  c10::Half* scale;
  int32_t* zero_point;  // signed
};

// False if no record holds the block.
bool StoreSymmetric(const GgufBlock& block, Target target) {
  if (!std::isfinite(block.scale)) return false;
  const bool zero = block.scale == 0;
  *target.scale = c10::Half(zero ? 1.0f : block.scale);
  *target.zero_point = 0;
  for (int64_t i = 0; i < kBlock; ++i) {
    target.codes[i] = zero ? int8_t{0} : block.codes[i];
  }
  return true;
}

bool StoreAsymmetric(int bits, GgufBlock block, Target target) {
  if (!std::isfinite(block.scale) || !std::isfinite(block.minimum)) return false;
  const int half = 1 << (bits - 1);
  float zero_point = 0;
  if (block.scale == 0) {
    // All values are the minimum: one step of a scale of that size.
    for (int8_t& code : block.codes) code = block.minimum == 0 ? 0 : 1;
    block.scale = block.minimum == 0 ? 1.0f : block.minimum;
  } else {
    zero_point = std::round(-block.minimum / block.scale);
    if (!(zero_point >= 0 && zero_point < static_cast<float>(2 * half))) return false;
    if (RoundToHalf(-zero_point * block.scale) != block.minimum) return false;
  }
  *target.scale = c10::Half(block.scale);
  *target.zero_point = static_cast<int32_t>(zero_point) - half;
  for (int64_t i = 0; i < kBlock; ++i) target.codes[i] = static_cast<int8_t>(block.codes[i] - half);
  return true;
}

}  // namespace

float HalfAt(const void* data) {
  uint16_t bits;
  std::memcpy(&bits, data, sizeof(bits));
  return static_cast<float>(c10::Half(bits, c10::Half::from_bits()));
}

GgufBlock UnpackGgufBlock(GgufType type, const char* data) {
  GgufBlock block;
  block.scale = HalfAt(data);
  data += 2;
  if (type == GgufType::kQ8_0) {
    std::memcpy(block.codes, data, kBlock);
    return block;
  }
  if (HasMinimum(type)) {
    block.minimum = HalfAt(data);
    data += 2;
  }
  const bool fifth_bit = type == GgufType::kQ5_0 || type == GgufType::kQ5_1;
  uint32_t high = 0;
  if (fifth_bit) {
    std::memcpy(&high, data, sizeof(high));
    data += sizeof(high);
  }
  for (int64_t i = 0; i < kBlock / 2; ++i) {
    block.codes[i] = static_cast<int8_t>(data[i] & 15);
    block.codes[i + kBlock / 2] = static_cast<int8_t>(data[i] >> 4 & 15);
  }
  if (fifth_bit) {
    for (int64_t i = 0; i < kBlock; ++i) {
      block.codes[i] = static_cast<int8_t>(block.codes[i] | (high >> i & 1u) << 4);
    }
  }
  const int middle = type == GgufType::kQ4_0 ? 8 : type == GgufType::kQ5_0 ? 16 : 0;
  for (int8_t& code : block.codes) code = static_cast<int8_t>(code - middle);
  return block;
}

std::optional<QuantizationScheme> SchemeOfGgufType(GgufType type) {
  QuantizationScheme scheme;
  scheme.group_size = kBlock;
  scheme.symmetric = !HasMinimum(type);
  switch (type) {
    case GgufType::kQ8_0:
      scheme.bits = 8;
      return scheme;
    case GgufType::kQ4_0:
    case GgufType::kQ4_1:
      scheme.bits = 4;
      return scheme;
    case GgufType::kQ5_0:
    case GgufType::kQ5_1:
      scheme.bits = 5;
      return scheme;
    default:
      return std::nullopt;
  }
}

absl::StatusOr<AffineQuantizedTensor> DecodeGgufRecord(const PlannedModule& module, GgufType type,
                                                       const std::vector<int64_t>& rows,
                                                       const std::string& data) {
  const int64_t count = module.out_features;
  const int64_t blocks = module.in_features / kBlock;
  const int64_t bytes = TraitsOf(type).bytes;
  if (static_cast<int64_t>(rows.size()) != count ||
      static_cast<int64_t>(data.size()) != count * blocks * bytes) {
    return absl::DataLossError(absl::StrCat("tensor ", module.module, ".weight: another size"));
  }
  const auto options = at::TensorOptions().dtype(at::kChar);
  at::Tensor codes = at::empty({count, module.in_features}, options);
  at::Tensor scale = at::empty({count, blocks}, options.dtype(at::kHalf));
  at::Tensor zero_point = at::empty({count, blocks}, options.dtype(at::kInt));
  auto* codes_data = codes.mutable_data_ptr<int8_t>();
  auto* scale_data = scale.mutable_data_ptr<c10::Half>();
  auto* zero_data = zero_point.mutable_data_ptr<int32_t>();
  std::atomic<int64_t> refused = -1;  // a block of the file
  at::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = rows[static_cast<size_t>(i)];
      for (int64_t block = 0; block < blocks; ++block) {
        const GgufBlock unpacked =
            UnpackGgufBlock(type, data.data() + (i * blocks + block) * bytes);
        const int64_t group = row * blocks + block;
        const Target target = {codes_data + group * kBlock, scale_data + group, zero_data + group};
        const bool stored = HasMinimum(type) ? StoreAsymmetric(module.scheme.bits, unpacked, target)
                                             : StoreSymmetric(unpacked, target);
        if (!stored) refused = i * blocks + block;
      }
    }
  });
  if (refused >= 0) {
    const GgufBlock block = UnpackGgufBlock(type, data.data() + refused * bytes);
    const std::string what =
        HasMinimum(type)
            ? absl::StrCat("minimum ", block.minimum, ", which is no multiple of its scale ",
                           block.scale, " that a zero point could be")
            : absl::StrCat("scale ", block.scale);
    return absl::FailedPreconditionError(
        absl::StrCat("tensor ", module.module, ".weight: ", TraitsOf(type).name, " block ",
                     refused % blocks, " of row ", rows[static_cast<size_t>(refused / blocks)],
                     " has the ", what, "; no affine record holds it exactly"));
  }
  return MakeRecord(module, std::move(codes), std::move(scale), std::move(zero_point));
}

void DecodeGgufValues(GgufType type, const char* data, int64_t count, float* values) {
  for (int64_t block = 0; block < count; ++block) {
    const GgufBlock unpacked = UnpackGgufBlock(type, data + block * TraitsOf(type).bytes);
    for (int64_t i = 0; i < kBlock; ++i) {
      values[block * kBlock + i] =
          static_cast<float>(unpacked.codes[i]) * unpacked.scale + unpacked.minimum;
    }
  }
}

}  // namespace ptq
