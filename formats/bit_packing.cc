#include "formats/bit_packing.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace ptq {
namespace {

constexpr uint64_t kEveryByte = 0x0101010101010101;
constexpr uint64_t kLow8Of16 = 0x00FF00FF00FF00FF;
constexpr uint64_t kLow16Of32 = 0x0000FFFF0000FFFF;
constexpr uint64_t kLow32Of64 = 0x00000000FFFFFFFF;
// Rows that are packed before they are written transposed: a line of the cache holds as many words.
constexpr int64_t kTile = 16;
constexpr std::array<int, 8> kAwqOrder = {0, 2, 4, 6, 1, 3, 5, 7};

uint64_t MaskOf(int bits) { return kEveryByte * ((uint64_t{1} << bits) - 1); }

// Adds a byte to each of eight, without carries between them.
uint64_t AddToBytes(uint64_t bytes, int offset) {
  const uint64_t addend = kEveryByte * static_cast<uint8_t>(offset);
  constexpr uint64_t kTop = kEveryByte << 7;
  return ((bytes & ~kTop) + (addend & ~kTop)) ^ ((bytes ^ addend) & kTop);
}

// Eight codes, one a byte, to 8 * bits bits, and back.
uint64_t Squeeze(uint64_t bytes, int bits) {
  uint64_t pairs = (bytes & kLow8Of16) | ((bytes >> 8) & kLow8Of16) << bits;
  pairs = (pairs & kLow16Of32) | ((pairs >> 16) & kLow16Of32) << (2 * bits);
  return (pairs & kLow32Of64) | (pairs >> 32) << (4 * bits);
}

uint64_t Spread(uint64_t stream, int bits) {
  const auto mask = [](int width) {
    return width >= 64 ? ~uint64_t{0} : (uint64_t{1} << width) - 1;
  };
  uint64_t quads = (stream & mask(4 * bits)) | ((stream >> (4 * bits)) & mask(4 * bits)) << 32;
  const uint64_t low2 = mask(2 * bits) | mask(2 * bits) << 32;
  quads = (quads & low2) | ((quads >> (2 * bits)) & low2) << 16;
  const uint64_t low1 = mask(bits) * 0x0001000100010001;
  return (quads & low1) | ((quads >> bits) & low1) << 8;
}

// One row to words; eight codes are `bits` whole bytes of a little-endian stream.
void PackRow(const int8_t* values, int64_t count, int bits, int offset, uint32_t* words) {
  const uint64_t mask = MaskOf(bits);
  auto* out = reinterpret_cast<char*>(words);
  char* const end = reinterpret_cast<char*>(words + PackedWords(count, bits));
  std::memset(out, 0, static_cast<size_t>(end - out));
  for (int64_t i = 0; i < count; i += 8) {
    const int64_t left = std::min<int64_t>(8, count - i);
    uint64_t bytes = 0;
    std::memcpy(&bytes, values + i, static_cast<size_t>(left));
    bytes = AddToBytes(bytes, offset) & mask;
    if (left < 8) bytes &= (uint64_t{1} << (8 * left)) - 1;
    const uint64_t stream = Squeeze(bytes, bits);
    std::memcpy(out, &stream, static_cast<size_t>(std::min<int64_t>(bits, end - out)));
    out += bits;
  }
}

void UnpackRow(const uint32_t* words, int64_t count, int bits, int offset, int8_t* values) {
  const auto* in = reinterpret_cast<const char*>(words);
  const char* const end = reinterpret_cast<const char*>(words + PackedWords(count, bits));
  for (int64_t i = 0; i < count; i += 8) {
    uint64_t stream = 0;
    std::memcpy(&stream, in, static_cast<size_t>(std::min<int64_t>(bits, end - in)));
    in += bits;
    const uint64_t bytes = AddToBytes(Spread(stream, bits), -offset);
    std::memcpy(values + i, &bytes, static_cast<size_t>(std::min<int64_t>(8, count - i)));
  }
}

uint32_t* Words(at::Tensor& tensor) {
  return reinterpret_cast<uint32_t*>(tensor.mutable_data_ptr<int32_t>());
}
const uint32_t* Words(const at::Tensor& tensor) {
  return reinterpret_cast<const uint32_t*>(tensor.const_data_ptr<int32_t>());
}

int64_t Grain(int64_t row_bytes) { return std::max<int64_t>(1, (1 << 16) / (row_bytes + 1)); }

}  // namespace

at::Tensor PackRows(const at::Tensor& values, int bits, int offset) {
  const int64_t rows = values.size(0);
  const int64_t columns = values.size(1);
  const int64_t width = PackedWords(columns, bits);
  at::Tensor packed = at::empty({rows, width}, at::kInt);
  const auto* in = values.const_data_ptr<int8_t>();
  uint32_t* out = Words(packed);
  at::parallel_for(0, rows, Grain(columns), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      PackRow(in + row * columns, columns, bits, offset, out + row * width);
    }
  });
  return packed;
}

at::Tensor PackRowsTransposed(const at::Tensor& values, int bits, int offset) {
  const int64_t rows = values.size(0);
  const int64_t columns = values.size(1);
  const int64_t width = PackedWords(columns, bits);
  at::Tensor packed = at::empty({width, rows}, at::kInt);
  const auto* in = values.const_data_ptr<int8_t>();
  uint32_t* out = Words(packed);
  const int64_t tiles = (rows + kTile - 1) / kTile;
  at::parallel_for(0, tiles, Grain(kTile * columns), [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> tile(static_cast<size_t>(kTile * width));
    for (int64_t first = begin * kTile; first < std::min(rows, end * kTile); first += kTile) {
      const int64_t count = std::min(kTile, rows - first);
      for (int64_t i = 0; i < count; ++i) {
        PackRow(in + (first + i) * columns, columns, bits, offset, tile.data() + i * width);
      }
      for (int64_t word = 0; word < width; ++word) {
        for (int64_t i = 0; i < count; ++i) {
          out[word * rows + first + i] = tile[static_cast<size_t>(i * width + word)];
        }
      }
    }
  });
  return packed;
}

at::Tensor UnpackRows(const at::Tensor& words, int64_t columns, int bits, int offset) {
  const int64_t rows = words.size(0);
  const int64_t width = words.size(1);
  at::Tensor values = at::empty({rows, columns}, at::kChar);
  const uint32_t* in = Words(words);
  auto* out = values.mutable_data_ptr<int8_t>();
  at::parallel_for(0, rows, Grain(columns), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      UnpackRow(in + row * width, columns, bits, offset, out + row * columns);
    }
  });
  return values;
}

at::Tensor UnpackRowsTransposed(const at::Tensor& words, int64_t columns, int bits, int offset) {
  const int64_t width = words.size(0);
  const int64_t rows = words.size(1);
  at::Tensor values = at::empty({rows, columns}, at::kChar);
  const uint32_t* in = Words(words);
  auto* out = values.mutable_data_ptr<int8_t>();
  const int64_t tiles = (rows + kTile - 1) / kTile;
  at::parallel_for(0, tiles, Grain(kTile * columns), [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> tile(static_cast<size_t>(kTile * width));
    for (int64_t first = begin * kTile; first < std::min(rows, end * kTile); first += kTile) {
      const int64_t count = std::min(kTile, rows - first);
      for (int64_t word = 0; word < width; ++word) {
        for (int64_t i = 0; i < count; ++i) {
          tile[static_cast<size_t>(i * width + word)] = in[word * rows + first + i];
        }
      }
      for (int64_t i = 0; i < count; ++i) {
        UnpackRow(tile.data() + i * width, columns, bits, offset, out + (first + i) * columns);
      }
    }
  });
  return values;
}

at::Tensor PackAwq(const at::Tensor& values, int offset) {
  const int64_t columns = values.size(1);
  const int64_t width = values.size(0) / 8;
  at::Tensor packed = at::empty({columns, width}, at::kInt);
  const auto* in = values.const_data_ptr<int8_t>();
  uint32_t* out = Words(packed);
  const int64_t tiles = (width + kTile - 1) / kTile;
  at::parallel_for(0, tiles, Grain(kTile * 8 * columns), [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> tile(static_cast<size_t>(kTile * columns));
    for (int64_t first = begin * kTile; first < std::min(width, end * kTile); first += kTile) {
      const int64_t count = std::min(kTile, width - first);
      for (int64_t i = 0; i < count; ++i) {
        uint32_t* words = tile.data() + i * columns;
        const int8_t* rows = in + 8 * (first + i) * columns;
        for (int64_t k = 0; k < columns; ++k) {
          uint32_t word = 0;
#pragma GCC unroll 8
          for (size_t nibble = 0; nibble < kAwqOrder.size(); ++nibble) {
            const int code = rows[kAwqOrder[nibble] * columns + k] + offset;
            word |= (static_cast<uint32_t>(code) & 15u) << (4 * nibble);
          }
          words[k] = word;
        }
      }
      for (int64_t k = 0; k < columns; ++k) {
        for (int64_t i = 0; i < count; ++i) {
          out[k * width + first + i] = tile[static_cast<size_t>(i * columns + k)];
        }
      }
    }
  });
  return packed;
}

at::Tensor UnpackAwq(const at::Tensor& words, int offset) {
  const int64_t columns = words.size(0);
  const int64_t width = words.size(1);
  at::Tensor values = at::empty({8 * width, columns}, at::kChar);
  const uint32_t* in = Words(words);
  auto* out = values.mutable_data_ptr<int8_t>();
  const int64_t tiles = (width + kTile - 1) / kTile;
  at::parallel_for(0, tiles, Grain(kTile * 8 * columns), [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> tile(static_cast<size_t>(kTile * columns));
    for (int64_t first = begin * kTile; first < std::min(width, end * kTile); first += kTile) {
      const int64_t count = std::min(kTile, width - first);
      for (int64_t k = 0; k < columns; ++k) {
        for (int64_t i = 0; i < count; ++i) {
          tile[static_cast<size_t>(i * columns + k)] = in[k * width + first + i];
        }
      }
      for (int64_t i = 0; i < count; ++i) {
        const uint32_t* row_words = tile.data() + i * columns;
        for (size_t nibble = 0; nibble < kAwqOrder.size(); ++nibble) {
          int8_t* row = out + (8 * (first + i) + kAwqOrder[nibble]) * columns;
          for (int64_t k = 0; k < columns; ++k) {
            row[k] =
                static_cast<int8_t>(static_cast<int>(row_words[k] >> (4 * nibble) & 15u) - offset);
          }
        }
      }
    }
  });
  return values;
}

}  // namespace ptq
