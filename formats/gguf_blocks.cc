#include "formats/gguf_blocks.h"

#include <ATen/Parallel.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "formats/gguf_decode.h"
#include "formats/gguf_super_blocks.h"

namespace ptq {
namespace {

constexpr int64_t kBlock = 32;

bool HasFifthBit(GgufType type) { return type == GgufType::kQ5_0 || type == GgufType::kQ5_1; }

uint16_t ToHalf(float value) { return c10::Half(value).x; }
float RoundToHalf(float value) { return static_cast<float>(c10::Half(value)); }

// A record's fields as arrays, by the row and the column of a weight.
struct Fields {
  const int8_t* codes;
  std::vector<float> scales;
  const int32_t* zero_points;
  int64_t columns;
  int64_t block_rows;
  int64_t block_columns;
  int64_t groups;  // of a row
  int half_range;
  bool scales_are_half;

  explicit Fields(const AffineQuantizedTensor& record)
      : codes(record.int_data.const_data_ptr<int8_t>()),
        zero_points(record.zero_point.const_data_ptr<int32_t>()),
        columns(record.int_data.size(1)),
        block_rows(record.block_size[0]),
        block_columns(record.block_size[1]),
        groups(columns / block_columns),
        half_range(1 << (record.bits - 1)),
        scales_are_half(record.scale.scalar_type() == at::kHalf) {
    const at::Tensor scale = record.scale.to(at::kFloat).contiguous();
    scales.assign(scale.const_data_ptr<float>(), scale.const_data_ptr<float>() + scale.numel());
  }
  int64_t Group(int64_t row, int64_t column) const {
    return row / block_rows * groups + column / block_columns;
  }
  // Of a group: -uz * s.
  float Minimum(int64_t group) const {
    return static_cast<float>(-(zero_points[group] + half_range)) *
           scales[static_cast<size_t>(group)];
  }
};

void EncodeBlock(const int8_t* codes, GgufType type, int half_range, uint16_t scale,
                 uint16_t minimum, char* out) {
  std::memcpy(out, &scale, sizeof(scale));
  out += sizeof(scale);
  if (type == GgufType::kQ8_0) {
    std::memcpy(out, codes, kBlock);
    return;
  }
  if (HasMinimum(type)) {
    std::memcpy(out, &minimum, sizeof(minimum));
    out += sizeof(minimum);
  }
  uint8_t unsigned_codes[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) {
    unsigned_codes[i] = static_cast<uint8_t>(codes[i] + half_range);
  }
  if (HasFifthBit(type)) {
    uint32_t high = 0;
    for (int64_t i = 0; i < kBlock; ++i) {
      high |= static_cast<uint32_t>(unsigned_codes[i] >> 4) << i;
    }
    std::memcpy(out, &high, sizeof(high));
    out += sizeof(high);
  }
  for (int64_t i = 0; i < kBlock / 2; ++i) {
    out[i] =
        static_cast<char>((unsigned_codes[i] & 15) | (unsigned_codes[i + kBlock / 2] & 15) << 4);
  }
}

// The first group that `type` can't hold, as a sentence; empty if it holds all.
std::string Misfit(const Fields& fields, GgufType type) {
  for (size_t group = 0; group < fields.scales.size(); ++group) {
    const float scale = fields.scales[group];
    if (!fields.scales_are_half && RoundToHalf(scale) != scale) {
      return absl::StrCat("scale ", scale, " of group ", group,
                          " is no float16, and GGUF stores nothing wider");
    }
    if (!HasMinimum(type)) {
      if (fields.zero_points[group] == 0) continue;
      return absl::StrCat("zero_point ", fields.zero_points[group], " of group ", group, ", but ",
                          TraitsOf(type).name, " has none");
    }
    if (!std::isfinite(RoundToHalf(fields.Minimum(static_cast<int64_t>(group))))) {
      return absl::StrCat("the minimum ", fields.Minimum(static_cast<int64_t>(group)), " of group ",
                          group, " does not fit in float16");
    }
  }
  return "";
}

}  // namespace

absl::StatusOr<std::string> EncodeGgufRows(const std::string& module,
                                           const AffineQuantizedTensor& record, GgufType type,
                                           const std::vector<int64_t>& rows) {
  if (record.k_quant != KQuant::kNone) return EncodeSuperBlocks(record, rows);
  const Fields fields(record);
  if (const std::string misfit = Misfit(fields, type); !misfit.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("tensor ", module, ".weight: ", misfit,
                                                      "; --format affine or dequantized holds it"));
  }
  const GgufTypeTraits traits = TraitsOf(type);
  const int64_t blocks = fields.columns / kBlock;
  std::string data(static_cast<size_t>(static_cast<int64_t>(rows.size()) * blocks * traits.bytes),
                   '\0');
  at::parallel_for(0, static_cast<int64_t>(rows.size()), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = rows[static_cast<size_t>(i)];
      char* out = data.data() + i * blocks * traits.bytes;
      for (int64_t block = 0; block < blocks; ++block, out += traits.bytes) {
        const int64_t group = fields.Group(row, block * kBlock);
        EncodeBlock(fields.codes + row * fields.columns + block * kBlock, type, fields.half_range,
                    ToHalf(fields.scales[static_cast<size_t>(group)]),
                    HasMinimum(type) ? ToHalf(fields.Minimum(group)) : uint16_t{0}, out);
      }
    }
  });
  return data;
}

absl::Status CheckGgufRows(const std::string& module, const AffineQuantizedTensor& record,
                           GgufType type, const std::vector<int64_t>& rows,
                           const std::string& data) {
  if (record.k_quant != KQuant::kNone) return CheckSuperBlocks(module, record, type, rows, data);
  const Fields fields(record);
  const GgufTypeTraits traits = TraitsOf(type);
  const int64_t blocks = fields.columns / kBlock;
  if (static_cast<int64_t>(data.size()) !=
      static_cast<int64_t>(rows.size()) * blocks * traits.bytes) {
    return absl::DataLossError(absl::StrCat("tensor ", module, ".weight: another size"));
  }
  std::atomic<int64_t> wrong = -1;  // row * columns + column
  at::parallel_for(0, static_cast<int64_t>(rows.size()), 16, [&](int64_t begin, int64_t end) {
    int8_t expected[kBlock];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = rows[static_cast<size_t>(i)];
      for (int64_t block = 0; block < blocks; ++block) {
        const GgufBlock stored =
            UnpackGgufBlock(type, data.data() + (i * blocks + block) * traits.bytes);
        const int64_t group = fields.Group(row, block * kBlock);
        const int8_t* codes = fields.codes + row * fields.columns + block * kBlock;
        const int shift = HasMinimum(type) ? fields.half_range : -fields.zero_points[group];
        for (int64_t j = 0; j < kBlock; ++j) expected[j] = static_cast<int8_t>(codes[j] + shift);
        const float minimum = HasMinimum(type) ? RoundToHalf(fields.Minimum(group)) : 0;
        // Signs of zeros count: they are those of values.
        if (std::bit_cast<uint32_t>(stored.scale) ==
                std::bit_cast<uint32_t>(fields.scales[static_cast<size_t>(group)]) &&
            std::bit_cast<uint32_t>(stored.minimum) == std::bit_cast<uint32_t>(minimum) &&
            std::memcmp(stored.codes, expected, kBlock) == 0) {
          continue;
        }
        const int64_t column =
            std::mismatch(expected, expected + kBlock, stored.codes).first - expected;
        wrong = row * fields.columns + block * kBlock + column % kBlock;
      }
    }
  });
  if (wrong < 0) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      "tensor ", module, ".weight was not written as it should be: ", "another value at [",
      wrong / fields.columns, ", ", wrong % fields.columns, "]"));
}

}  // namespace ptq
