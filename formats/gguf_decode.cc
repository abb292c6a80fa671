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

float HalfAt(const char* data) {
  uint16_t bits;
  std::memcpy(&bits, data, sizeof(bits));
  return static_cast<float>(c10::Half(bits, c10::Half::from_bits()));
}
float RoundToHalf(float value) { return static_cast<float>(c10::Half(value)); }

// value = (codes - middle) * scale + minimum, codes from 0 on; Q8_0's are signed, its middle 0.
struct Block {
  float scale = 0;
  float minimum = 0;
  int codes[kBlock];
};

bool HasMinimum(GgufType type) { return type == GgufType::kQ4_1 || type == GgufType::kQ5_1; }

// What is subtracted from the codes of a symmetric type.
int MiddleOf(GgufType type) {
  return type == GgufType::kQ4_0 ? 8 : type == GgufType::kQ5_0 ? 16 : 0;
}

Block Unpack(GgufType type, const char* data) {
  Block block;
  block.scale = HalfAt(data);
  data += 2;
  if (HasMinimum(type)) {
    block.minimum = HalfAt(data);
    data += 2;
  }
  if (type == GgufType::kQ8_0) {
    for (int64_t i = 0; i < kBlock; ++i) block.codes[i] = static_cast<signed char>(data[i]);
    return block;
  }
  uint32_t fifth_bits = 0;
  if (type == GgufType::kQ5_0 || type == GgufType::kQ5_1) {
    std::memcpy(&fifth_bits, data, sizeof(fifth_bits));
    data += sizeof(fifth_bits);
  }
  for (int64_t i = 0; i < kBlock; ++i) {
    const auto byte = static_cast<unsigned char>(data[i % 16]);
    const uint32_t low = i < 16 ? byte & 15u : byte >> 4;
    block.codes[i] = static_cast<int>(low | (fifth_bits >> i & 1u) << 4);
  }
  return block;
}

// Where a block's values go.
struct Target {
  int8_t* codes;  // signed
  c10::Half* scale;
  int32_t* zero_point;  // signed
};

// False if no record holds the block.
bool StoreSymmetric(GgufType type, const Block& block, Target target) {
  if (!std::isfinite(block.scale)) return false;
  const bool zero = block.scale == 0;
  *target.scale = c10::Half(zero ? 1.0f : block.scale);
  *target.zero_point = 0;
  for (int64_t i = 0; i < kBlock; ++i) {
    target.codes[i] = static_cast<int8_t>(zero ? 0 : block.codes[i] - MiddleOf(type));
  }
  return true;
}

bool StoreAsymmetric(int bits, Block block, Target target) {
  if (!std::isfinite(block.scale) || !std::isfinite(block.minimum)) return false;
  const int half = 1 << (bits - 1);
  float zero_point = 0;
  if (block.scale == 0) {
    // All values are the minimum: one step of a scale of that size.
    for (int& code : block.codes) code = block.minimum == 0 ? 0 : 1;
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
        const Block unpacked = Unpack(type, data.data() + (i * blocks + block) * bytes);
        const int64_t group = row * blocks + block;
        const Target target = {codes_data + group * kBlock, scale_data + group, zero_data + group};
        const bool stored = HasMinimum(type) ? StoreAsymmetric(module.scheme.bits, unpacked, target)
                                             : StoreSymmetric(type, unpacked, target);
        if (!stored) refused = i * blocks + block;
      }
    }
  });
  if (refused >= 0) {
    const Block block = Unpack(type, data.data() + refused * bytes);
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
  const auto middle = static_cast<float>(MiddleOf(type));
  for (int64_t block = 0; block < count; ++block) {
    const Block unpacked = Unpack(type, data + block * TraitsOf(type).bytes);
    for (int64_t i = 0; i < kBlock; ++i) {
      values[block * kBlock + i] =
          (static_cast<float>(unpacked.codes[i]) - middle) * unpacked.scale + unpacked.minimum;
    }
  }
}

}  // namespace ptq
