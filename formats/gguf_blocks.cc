#include "formats/gguf_blocks.h"

#include <ATen/Parallel.h>
#include <c10/util/Half.h>

#include <atomic>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "formats/gguf_super_blocks.h"

namespace ptq {
namespace {

constexpr int64_t kBlock = 32;

bool HasMinimum(GgufType type) { return type == GgufType::kQ4_1 || type == GgufType::kQ5_1; }
bool HasFifthBit(GgufType type) { return type == GgufType::kQ5_0 || type == GgufType::kQ5_1; }

float FromHalf(uint16_t bits) {
  return static_cast<float>(c10::Half(bits, c10::Half::from_bits()));
}
uint16_t ToHalf(float value) { return c10::Half(value).x; }

uint16_t LoadHalf(const char* data) {
  uint16_t bits;
  std::memcpy(&bits, data, sizeof(bits));
  return bits;
}

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

  explicit Fields(const AffineQuantizedTensor& record)
      : codes(record.int_data.const_data_ptr<int8_t>()),
        zero_points(record.zero_point.const_data_ptr<int32_t>()),
        columns(record.int_data.size(1)),
        block_rows(record.block_size[0]),
        block_columns(record.block_size[1]),
        groups(columns / block_columns),
        half_range(1 << (record.bits - 1)) {
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

// The values of one block, by ggml's description of it.
void DecodeBlock(const char* data, GgufType type, float* values) {
  const float scale = FromHalf(LoadHalf(data));
  const auto* bytes = reinterpret_cast<const uint8_t*>(data);
  switch (type) {
    case GgufType::kQ8_0:
      for (int i = 0; i < 32; ++i) values[i] = static_cast<float>(data[2 + i]) * scale;
      break;
    case GgufType::kQ4_0:
      for (int i = 0; i < 16; ++i) {
        values[i] = static_cast<float>((bytes[2 + i] & 0x0F) - 8) * scale;
        values[i + 16] = static_cast<float>((bytes[2 + i] >> 4) - 8) * scale;
      }
      break;
    case GgufType::kQ4_1: {
      const float minimum = FromHalf(LoadHalf(data + 2));
      for (int i = 0; i < 16; ++i) {
        values[i] = static_cast<float>(bytes[4 + i] & 0x0F) * scale + minimum;
        values[i + 16] = static_cast<float>(bytes[4 + i] >> 4) * scale + minimum;
      }
      break;
    }
    case GgufType::kQ5_0:
      for (int i = 0; i < 32; ++i) {
        const int high = (bytes[2 + i / 8] >> (i % 8)) & 1;
        const int low = i < 16 ? bytes[6 + i] & 0x0F : bytes[6 + i - 16] >> 4;
        values[i] = static_cast<float>((low | high << 4) - 16) * scale;
      }
      break;
    case GgufType::kQ5_1: {
      const float minimum = FromHalf(LoadHalf(data + 2));
      for (int i = 0; i < 32; ++i) {
        const int high = (bytes[4 + i / 8] >> (i % 8)) & 1;
        const int low = i < 16 ? bytes[8 + i] & 0x0F : bytes[8 + i - 16] >> 4;
        values[i] = static_cast<float>(low | high << 4) * scale + minimum;
      }
      break;
    }
    default:
      break;
  }
}

// The first group that `type` can't hold, as a sentence; empty if it holds all.
std::string Misfit(const Fields& fields, GgufType type) {
  for (size_t group = 0; group < fields.scales.size(); ++group) {
    const float scale = fields.scales[group];
    if (FromHalf(ToHalf(scale)) != scale) {
      return absl::StrCat("scale ", scale, " of group ", group,
                          " is no float16, and GGUF stores nothing wider");
    }
    if (!HasMinimum(type)) {
      if (fields.zero_points[group] == 0) continue;
      return absl::StrCat("zero_point ", fields.zero_points[group], " of group ", group, ", but ",
                          TraitsOf(type).name, " has none");
    }
    if (!std::isfinite(FromHalf(ToHalf(fields.Minimum(static_cast<int64_t>(group)))))) {
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
    float values[kBlock];
    float expected[kBlock];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = rows[static_cast<size_t>(i)];
      for (int64_t block = 0; block < blocks; ++block) {
        DecodeBlock(data.data() + (i * blocks + block) * traits.bytes, type, values);
        const int64_t group = fields.Group(row, block * kBlock);
        const float scale = fields.scales[static_cast<size_t>(group)];
        const int zero_point = fields.zero_points[group];
        const float minimum = FromHalf(ToHalf(fields.Minimum(group)));
        const int8_t* codes = fields.codes + row * fields.columns + block * kBlock;
        if (HasMinimum(type)) {
          for (int64_t j = 0; j < kBlock; ++j) {
            expected[j] = static_cast<float>(codes[j] + fields.half_range) * scale + minimum;
          }
        } else {
          for (int64_t j = 0; j < kBlock; ++j) {
            expected[j] = static_cast<float>(codes[j] - zero_point) * scale;
          }
        }
        if (std::memcmp(values, expected, sizeof(values)) == 0) continue;
        int64_t column = 0;
        while (std::memcmp(values + column, expected + column, sizeof(float)) == 0) ++column;
        wrong = row * fields.columns + block * kBlock + column;
      }
    }
  });
  if (wrong < 0) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      "tensor ", module, ".weight was not written as it should be: ", "another value at [",
      wrong / fields.columns, ", ", wrong % fields.columns, "]"));
}

}  // namespace ptq
