#include "formats/gguf_super_blocks.h"

#include <ATen/Parallel.h>
#include <c10/util/Half.h>

#include <array>
#include <atomic>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "formats/gguf_decode.h"

namespace ptq {
namespace {

constexpr int kElements = static_cast<int>(kSuperBlock);
constexpr int64_t kRowsPerTask = 16;

// A record's fields as arrays.
struct Fields {
  KQuant type;
  KQuantTraits traits;
  int64_t super_blocks;  // of a row
  int64_t groups;        // of a super-block
  int half_range;
  const int8_t* codes;
  const c10::Half* scales;
  const c10::Half* minimums = nullptr;
  const int8_t* sub_scales;
  const int8_t* sub_minimums = nullptr;

  explicit Fields(const AffineQuantizedTensor& record)
      : type(record.k_quant),
        traits(TraitsOf(type)),
        super_blocks(record.int_data.size(1) / kSuperBlock),
        groups(kSuperBlock / traits.group_size),
        half_range(1 << (traits.bits - 1)),
        codes(record.int_data.const_data_ptr<int8_t>()),
        scales(record.super_blocks.scale.const_data_ptr<c10::Half>()),
        sub_scales(record.super_blocks.sub_scale.const_data_ptr<int8_t>()) {
    if (traits.symmetric) return;
    minimums = record.super_blocks.minimum.const_data_ptr<c10::Half>();
    sub_minimums = record.super_blocks.sub_minimum.const_data_ptr<int8_t>();
  }
};

// A super-block of a record, with unsigned codes.
struct SuperBlock {
  std::array<uint8_t, kElements> codes;
  const int8_t* scales;
  const int8_t* minimums;  // nullptr where symmetric
  uint16_t scale;
  uint16_t minimum;
};

void Or(char* out, int byte, unsigned bits) {
  out[byte] = static_cast<char>(static_cast<uint8_t>(out[byte]) | bits);
}

// Where ggml puts the parts of element `e`'s code. Pairs of bits: 32 bytes hold 128 elements, four
// quarters of 32 above each other. Single bits: 32 bytes hold all, eight of 32. Nibbles: 32 bytes
// hold 64.
void PutPair(char* out, int e, unsigned pair) {
  Or(out, e / 128 * 32 + e % 32, pair << (e % 128 / 32 * 2));
}
void PutBit(char* out, int e, unsigned bit) { Or(out, e % 32, bit << (e / 32)); }
void PutNibble(char* out, int e, unsigned nibble) {
  Or(out, e / 64 * 32 + e % 32, nibble << (e % 64 / 32 * 4));
}
// Q6_K's nibbles: 64 bytes hold 128, the first 64 of them below the others.
void PutWideNibble(char* out, int e, unsigned nibble) {
  Or(out, e / 128 * 64 + e % 64, nibble << (e % 128 / 64 * 4));
}

void PutHalf(char* out, uint16_t half) { std::memcpy(out, &half, sizeof(half)); }

// Eight scales and eight minima of six bits in 12 bytes (Q4_K, Q5_K): the first four of each in the
// low bits of a byte, whose two high bits are those of the four that follow.
void PutSixBits(char* out, const int8_t* scales, const int8_t* minimums) {
  for (int g = 0; g < 8; ++g) {
    const auto scale = static_cast<unsigned>(scales[g]);
    const auto minimum = static_cast<unsigned>(minimums[g]);
    if (g < 4) {
      Or(out, g, scale);
      Or(out, g + 4, minimum);
    } else {
      Or(out, g + 4, (scale & 15) | (minimum & 15) << 4);
      Or(out, g - 4, scale >> 4 << 6);
      Or(out, g, minimum >> 4 << 6);
    }
  }
}

// `out`: zeros.
void Encode(KQuant type, const SuperBlock& block, char* out) {
  switch (type) {
    case KQuant::kQ2_K:
      for (int g = 0; g < 16; ++g) {
        Or(out, g,
           static_cast<unsigned>(block.scales[g]) | static_cast<unsigned>(block.minimums[g]) << 4);
      }
      for (int e = 0; e < kElements; ++e) PutPair(out + 16, e, block.codes[e]);
      PutHalf(out + 80, block.scale);
      PutHalf(out + 82, block.minimum);
      break;
    case KQuant::kQ3_K:
      for (int e = 0; e < kElements; ++e) {
        PutBit(out, e, block.codes[e] >> 2);
        PutPair(out + 32, e, block.codes[e] & 3);
      }
      for (int g = 0; g < 16; ++g) {
        const auto scale = static_cast<unsigned>(block.scales[g] + 32);
        Or(out, 96 + g % 8, (scale & 15) << (g / 8 * 4));
        Or(out, 104 + g % 4, scale >> 4 << (g / 4 * 2));
      }
      PutHalf(out + 108, block.scale);
      break;
    case KQuant::kQ4_K:
    case KQuant::kQ5_K: {
      PutHalf(out, block.scale);
      PutHalf(out + 2, block.minimum);
      PutSixBits(out + 4, block.scales, block.minimums);
      const bool fifth = type == KQuant::kQ5_K;
      for (int e = 0; e < kElements; ++e) {
        if (fifth) PutBit(out + 16, e, block.codes[e] >> 4);
        PutNibble(out + (fifth ? 48 : 16), e, block.codes[e] & 15);
      }
      break;
    }
    default:
      for (int e = 0; e < kElements; ++e) {
        PutWideNibble(out, e, block.codes[e] & 15);
        PutPair(out + 128, e, block.codes[e] >> 4);
      }
      std::memcpy(out + 192, block.scales, 16);
      PutHalf(out + 208, block.scale);
      break;
  }
}

// The values of one super-block, by ggml's description of it: in the order of its bytes.
void Decode(KQuant type, const uint8_t* data, float* values) {
  switch (type) {
    case KQuant::kQ2_K:
      for (int part = 0; part < 8; ++part) {
        for (int i = 0; i < 32; ++i) {
          const uint8_t sub = data[2 * part + i / 16];
          const int code = data[16 + part / 4 * 32 + i] >> (part % 4 * 2) & 3;
          values[32 * part + i] =
              HalfAt(data + 80) * static_cast<float>(sub & 15) * static_cast<float>(code) -
              HalfAt(data + 82) * static_cast<float>(sub >> 4);
        }
      }
      break;
    case KQuant::kQ3_K:
      for (int part = 0; part < 8; ++part) {
        for (int i = 0; i < 32; ++i) {
          const int group = 2 * part + i / 16;
          const int low = group < 8 ? data[96 + group] & 15 : data[88 + group] >> 4;
          const int sub = low | (data[104 + group % 4] >> (group / 4 * 2) & 3) << 4;
          const int code = data[32 + part / 4 * 32 + i] >> (part % 4 * 2) & 3;
          const int offset = (data[i] >> part & 1) != 0 ? 0 : 4;
          values[32 * part + i] =
              HalfAt(data + 108) * static_cast<float>(sub - 32) * static_cast<float>(code - offset);
        }
      }
      break;
    case KQuant::kQ4_K:
    case KQuant::kQ5_K: {
      const uint8_t* packed = data + 4;
      for (int part = 0; part < 8; ++part) {
        int sub = packed[part] & 63;
        int sub_minimum = packed[part + 4] & 63;
        if (part >= 4) {
          sub = (packed[part + 4] & 15) | packed[part - 4] >> 6 << 4;
          sub_minimum = packed[part + 4] >> 4 | packed[part] >> 6 << 4;
        }
        for (int i = 0; i < 32; ++i) {
          const uint8_t* nibbles = data + (type == KQuant::kQ5_K ? 48 : 16) + part / 2 * 32;
          int code = part % 2 == 0 ? nibbles[i] & 15 : nibbles[i] >> 4;
          if (type == KQuant::kQ5_K) code |= (data[16 + i] >> part & 1) << 4;
          values[32 * part + i] =
              HalfAt(data) * static_cast<float>(sub) * static_cast<float>(code) -
              HalfAt(data + 2) * static_cast<float>(sub_minimum);
        }
      }
      break;
    }
    default:
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 32; ++i) {
          const uint8_t first = data[64 * half + i];
          const uint8_t second = data[64 * half + 32 + i];
          const uint8_t high = data[128 + 32 * half + i];
          const int codes[] = {(first & 15) | (high & 3) << 4, (second & 15) | (high >> 2 & 3) << 4,
                               first >> 4 | (high >> 4 & 3) << 4, second >> 4 | (high >> 6) << 4};
          for (int part = 0; part < 4; ++part) {
            const auto sub = static_cast<int8_t>(data[192 + 8 * half + 2 * part + i / 16]);
            values[128 * half + 32 * part + i] =
                HalfAt(data + 208) * static_cast<float>(sub) * static_cast<float>(codes[part] - 32);
          }
        }
      }
      break;
  }
}

}  // namespace

std::string EncodeSuperBlocks(const AffineQuantizedTensor& record,
                              const std::vector<int64_t>& rows) {
  const Fields fields(record);
  const auto count = static_cast<int64_t>(rows.size());
  std::string data(static_cast<size_t>(count * fields.super_blocks * fields.traits.bytes), '\0');
  at::parallel_for(0, count, kRowsPerTask, [&](int64_t begin, int64_t end) {
    SuperBlock block;
    for (int64_t i = begin; i < end; ++i) {
      char* out = data.data() + i * fields.super_blocks * fields.traits.bytes;
      for (int64_t s = 0; s < fields.super_blocks; ++s, out += fields.traits.bytes) {
        const int64_t at = rows[static_cast<size_t>(i)] * fields.super_blocks + s;
        for (int e = 0; e < kElements; ++e) {
          block.codes[e] =
              static_cast<uint8_t>(fields.codes[at * kSuperBlock + e] + fields.half_range);
        }
        block.scale = fields.scales[at].x;
        block.scales = fields.sub_scales + at * fields.groups;
        block.minimum = fields.minimums != nullptr ? fields.minimums[at].x : uint16_t{0};
        block.minimums =
            fields.minimums != nullptr ? fields.sub_minimums + at * fields.groups : nullptr;
        Encode(fields.type, block, out);
      }
    }
  });
  return data;
}

absl::Status CheckSuperBlocks(const std::string& module, const AffineQuantizedTensor& record,
                              GgufType type, const std::vector<int64_t>& rows,
                              const std::string& data) {
  const auto wrong = [&module](const std::string& what) {
    return absl::DataLossError(
        absl::StrCat("tensor ", module, ".weight was not written as it should be: ", what));
  };
  const Fields fields(record);
  const KQuant stored = KQuantOf(type);
  const auto count = static_cast<int64_t>(rows.size());
  if (stored != fields.type) return wrong("another type");
  if (static_cast<int64_t>(data.size()) != count * fields.super_blocks * fields.traits.bytes) {
    return wrong("another size");
  }
  const int64_t columns = fields.super_blocks * kSuperBlock;
  std::atomic<int64_t> difference = -1;  // row * columns + column
  at::parallel_for(0, count, kRowsPerTask, [&](int64_t begin, int64_t end) {
    float values[kElements];
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t s = 0; s < fields.super_blocks; ++s) {
        const int64_t place = (i * fields.super_blocks + s) * fields.traits.bytes;
        Decode(stored, reinterpret_cast<const uint8_t*>(data.data() + place), values);
        const int64_t at = rows[static_cast<size_t>(i)] * fields.super_blocks + s;
        const auto scale = static_cast<float>(fields.scales[at]);
        for (int e = 0; e < kElements; ++e) {
          const int64_t group = at * fields.groups + e / fields.traits.group_size;
          const int code = fields.codes[at * kSuperBlock + e];
          const float unit = scale * static_cast<float>(fields.sub_scales[group]);
          float expected = unit * static_cast<float>(code);
          if (fields.minimums != nullptr) {
            expected = unit * static_cast<float>(code + fields.half_range) -
                       static_cast<float>(fields.minimums[at]) *
                           static_cast<float>(fields.sub_minimums[group]);
          }
          if (std::memcmp(&values[e], &expected, sizeof(expected)) != 0) {
            difference = at * kSuperBlock + e;
          }
        }
      }
    }
  });
  if (difference < 0) return absl::OkStatus();
  return wrong(
      absl::StrCat("another value at [", difference / columns, ", ", difference % columns, "]"));
}

}  // namespace ptq
