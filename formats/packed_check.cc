#include "formats/packed_check.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace ptq {
namespace {

// Files that hold words transposed are walked through across their rows: a piece stays in a cache.
constexpr int64_t kPieceWords = 1 << 16;

std::string At(int64_t row, int64_t column) { return absl::StrCat("at [", row, ", ", column, "]"); }

uint32_t WordAt(const std::string& bytes, int64_t index) {
  uint32_t word;
  std::memcpy(&word, bytes.data() + 4 * index, sizeof(word));
  return word;
}

// Element `index` of a stream whose word i is words[i * stride].
int CodeAt(const uint32_t* words, int64_t stride, int64_t index, int bits) {
  const int64_t position = index * bits;
  const int64_t word = position / 32;
  const int shift = static_cast<int>(position % 32);
  uint32_t code = words[word * stride] >> shift;
  if (shift + bits > 32) code |= words[(word + 1) * stride] << (32 - shift);
  return static_cast<int>(code & ((1u << bits) - 1u));
}

// Elements 0 .. count-1 of a contiguous stream, less `middle`, 32 at a time: these are kBits words.
template <int kBits>
void DecodeStream(const uint32_t* words, int64_t count, int middle, int8_t* codes) {
  const int64_t whole = count / 32;
  for (int64_t unit = 0; unit < whole; ++unit) {
    const uint32_t* in = words + unit * kBits;
    int8_t* out = codes + unit * 32;
#pragma GCC unroll 32
    for (int i = 0; i < 32; ++i) {
      const int word = i * kBits / 32;
      const int shift = i * kBits % 32;
      uint32_t code = in[word] >> shift;
      if (shift + kBits > 32) code |= in[word + 1] << (32 - shift);
      out[i] = static_cast<int8_t>(static_cast<int>(code & ((1u << kBits) - 1u)) - middle);
    }
  }
  for (int64_t i = whole * 32; i < count; ++i) {
    codes[i] = static_cast<int8_t>(CodeAt(words, 1, i, kBits) - middle);
  }
}

using StreamDecoder = void (*)(const uint32_t*, int64_t, int, int8_t*);
// By width, from 2 bits on.
constexpr StreamDecoder kStreamDecoders[] = {DecodeStream<2>, DecodeStream<3>, DecodeStream<4>,
                                             DecodeStream<5>, DecodeStream<6>, DecodeStream<7>,
                                             DecodeStream<8>};

class PackedCheck {
 public:
  PackedCheck(const RecordView& record, RecordCheck& file)
      : record_(record),
        file_(file),
        groups_(record.columns / record.block_size[1]),
        middle_(1 << (record.bits - 1)) {}

  int64_t groups() const { return groups_; }
  int middle() const { return middle_; }
  int zero(int64_t row, int64_t group) const {
    return record_.zero_point[row / record_.block_size[0] * groups_ + group] + middle_;
  }

  absl::StatusOr<std::vector<uint32_t>> Words(const std::string& name,
                                              const std::vector<int64_t>& shape) {
    PTQ_ASSIGN_OR_RETURN(const TensorInfo info, file_.Find(name, DType::kI32, shape));
    return Words(info, 0, shape[0] * shape[1]);
  }
  absl::StatusOr<std::vector<uint32_t>> Words(const TensorInfo& info, int64_t first,
                                              int64_t count) {
    PTQ_RETURN_IF_ERROR(file_.ReadPiece(info, 4 * first, 4 * count, bytes_));
    std::vector<uint32_t> words(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) words[static_cast<size_t>(i)] = WordAt(bytes_, i);
    return words;
  }

  // Codes `first` .. `first + count - 1` of a row, as the record has them.
  absl::Status Codes(const std::string& name, const int8_t* codes, int64_t row, int64_t first,
                     int64_t count) const {
    const int8_t* expected = record_.codes + row * record_.columns + first;
    if (std::memcmp(codes, expected, static_cast<size_t>(count)) == 0) return absl::OkStatus();
    const int64_t at = std::mismatch(codes, codes + count, expected).first - codes;
    return Wrong(name, codes[at] + middle_, expected[at] + middle_, row, first + at);
  }

  // Scales [N, G], or [G, N] if `transposed`, of a dtype that may be narrower than the record's.
  absl::Status Scales(const std::string& name, DType dtype, bool transposed) {
    const std::vector<int64_t> shape = transposed ? std::vector<int64_t>{groups_, record_.rows}
                                                  : std::vector<int64_t>{record_.rows, groups_};
    PTQ_ASSIGN_OR_RETURN(const TensorInfo info, file_.Find(name, dtype, shape));
    std::string stored;
    PTQ_RETURN_IF_ERROR(file_.ReadPiece(info, 0, info.bytes(), stored));
    for (int64_t row = 0; row < record_.rows; ++row) {
      for (int64_t group = 0; group < groups_; ++group) {
        const int64_t index = transposed ? group * record_.rows + row : row * groups_ + group;
        const float scale = DecodeFloat(stored.data(), index, dtype);
        const float expected =
            DecodeFloat(static_cast<const char*>(record_.scale),
                        row / record_.block_size[0] * groups_ + group, record_.scale_dtype);
        // Also false for NaN; scales are not 0, so that the sign counts.
        if (!(scale == expected)) return Wrong(name, scale, expected, row, group);
      }
    }
    return absl::OkStatus();
  }

  template <typename Value>
  absl::Status Wrong(const std::string& name, Value stored, Value expected, int64_t row,
                     int64_t column) const {
    return file_.Wrong(name, absl::StrCat(stored, " and not ", expected, " ", At(row, column)));
  }

 private:
  const RecordView& record_;
  RecordCheck& file_;
  const int64_t groups_;
  const int middle_;
  std::string bytes_;
};

}  // namespace

absl::Status CheckCompressedTensors(const RecordView& record, bool symmetric, RecordCheck& file) {
  PackedCheck check(record, file);
  const std::string prefix = record.module + ".weight_";
  PTQ_RETURN_IF_ERROR(check.Scales(prefix + "scale", record.scale_dtype, /*transposed=*/false));
  PTQ_ASSIGN_OR_RETURN(const TensorInfo shape, file.Find(prefix + "shape", DType::kI64, {2}));
  std::string bytes;
  PTQ_RETURN_IF_ERROR(file.ReadPiece(shape, 0, shape.bytes(), bytes));
  int64_t extents[2];
  std::memcpy(extents, bytes.data(), sizeof(extents));
  if (extents[0] != record.rows || extents[1] != record.columns) {
    return file.Wrong(prefix + "shape", "another shape");
  }
  const int bits = record.bits;
  if (!symmetric) {
    const int64_t height = (record.rows * bits + 31) / 32;
    PTQ_ASSIGN_OR_RETURN(const auto zeros,
                         check.Words(prefix + "zero_point", {height, check.groups()}));
    for (int64_t row = 0; row < record.rows; ++row) {
      for (int64_t group = 0; group < check.groups(); ++group) {
        const int zero = CodeAt(zeros.data() + group, check.groups(), row, bits);
        if (zero != check.zero(row, group)) {
          return check.Wrong(prefix + "zero_point", zero, check.zero(row, group), row, group);
        }
      }
    }
  }
  const std::string name = prefix + "packed";
  const int64_t width = (record.columns * bits + 31) / 32;
  PTQ_ASSIGN_OR_RETURN(const TensorInfo info, file.Find(name, DType::kI32, {record.rows, width}));
  const int64_t rows_a_piece = std::max<int64_t>(1, kPieceWords / width);
  const StreamDecoder decode = kStreamDecoders[bits - 2];
  std::vector<int8_t> codes(static_cast<size_t>(record.columns));
  for (int64_t first = 0; first < record.rows; first += rows_a_piece) {
    const int64_t count = std::min(rows_a_piece, record.rows - first);
    PTQ_ASSIGN_OR_RETURN(const auto words, check.Words(info, first * width, count * width));
    for (int64_t i = 0; i < count; ++i) {
      decode(words.data() + i * width, record.columns, check.middle(), codes.data());
      PTQ_RETURN_IF_ERROR(check.Codes(name, codes.data(), first + i, 0, record.columns));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckGptq(const RecordView& record, int zero_bias, bool with_index,
                       RecordCheck& file) {
  PackedCheck check(record, file);
  const std::string prefix = record.module + ".";
  const int bits = record.bits;
  PTQ_RETURN_IF_ERROR(check.Scales(prefix + "scales", DType::kF16, /*transposed=*/true));
  const int64_t zero_width = record.rows * bits / 32;
  PTQ_ASSIGN_OR_RETURN(const auto zeros,
                       check.Words(prefix + "qzeros", {check.groups(), zero_width}));
  for (int64_t group = 0; group < check.groups(); ++group) {
    for (int64_t row = 0; row < record.rows; ++row) {
      const int zero = CodeAt(zeros.data() + group * zero_width, 1, row, bits) + zero_bias;
      if (zero != check.zero(row, group)) {
        return check.Wrong(prefix + "qzeros", zero, check.zero(row, group), row, group);
      }
    }
  }
  if (with_index) {
    PTQ_ASSIGN_OR_RETURN(const TensorInfo info,
                         file.Find(prefix + "g_idx", DType::kI32, {record.columns}));
    PTQ_ASSIGN_OR_RETURN(const auto index, check.Words(info, 0, record.columns));
    for (int64_t column = 0; column < record.columns; ++column) {
      const int64_t group = column / record.block_size[1];
      if (index[static_cast<size_t>(column)] != static_cast<uint32_t>(group)) {
        return file.Wrong(prefix + "g_idx", absl::StrCat("another group for column ", column));
      }
    }
  }
  const std::string name = prefix + "qweight";
  const int64_t height = record.columns * bits / 32;
  PTQ_ASSIGN_OR_RETURN(const TensorInfo info, file.Find(name, DType::kI32, {height, record.rows}));
  // 32 columns are `bits` whole rows of words.
  const int64_t units = height / bits;
  const int64_t units_a_piece = std::max<int64_t>(1, kPieceWords / (bits * record.rows));
  const StreamDecoder decode = kStreamDecoders[bits - 2];
  std::vector<uint32_t> row_words(static_cast<size_t>(units_a_piece * bits));
  std::vector<int8_t> codes(static_cast<size_t>(units_a_piece * 32));
  for (int64_t first = 0; first < units; first += units_a_piece) {
    const int64_t count = std::min(units_a_piece, units - first);
    const int64_t stride = record.rows;
    PTQ_ASSIGN_OR_RETURN(const auto words,
                         check.Words(info, first * bits * stride, count * bits * stride));
    for (int64_t row = 0; row < record.rows; ++row) {
      for (int64_t i = 0; i < count * bits; ++i) {
        row_words[static_cast<size_t>(i)] = words[static_cast<size_t>(i * stride + row)];
      }
      decode(row_words.data(), 32 * count, check.middle(), codes.data());
      PTQ_RETURN_IF_ERROR(check.Codes(name, codes.data(), row, 32 * first, 32 * count));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckAwq(const RecordView& record, RecordCheck& file) {
  // Where column j of eight lies: the inverse of the order in which the packer takes them.
  static constexpr int kNibbleOf[8] = {0, 4, 1, 5, 2, 6, 3, 7};
  PackedCheck check(record, file);
  const std::string prefix = record.module + ".";
  PTQ_RETURN_IF_ERROR(check.Scales(prefix + "scales", DType::kF16, /*transposed=*/true));
  const int64_t width = record.rows / 8;
  PTQ_ASSIGN_OR_RETURN(const auto zeros, check.Words(prefix + "qzeros", {check.groups(), width}));
  const auto code_at = [width](const uint32_t* words, int64_t line, int64_t row) {
    return static_cast<int>(words[line * width + row / 8] >> (4 * kNibbleOf[row % 8]) & 15u);
  };
  for (int64_t group = 0; group < check.groups(); ++group) {
    for (int64_t row = 0; row < record.rows; ++row) {
      const int zero = code_at(zeros.data(), group, row);
      if (zero != check.zero(row, group)) {
        return check.Wrong(prefix + "qzeros", zero, check.zero(row, group), row, group);
      }
    }
  }
  const std::string name = prefix + "qweight";
  PTQ_ASSIGN_OR_RETURN(const TensorInfo info,
                       file.Find(name, DType::kI32, {record.columns, width}));
  const int64_t columns_a_piece = std::max<int64_t>(1, kPieceWords / width);
  std::vector<uint32_t> column_words(static_cast<size_t>(columns_a_piece));
  std::vector<int8_t> codes(static_cast<size_t>(columns_a_piece));
  for (int64_t first = 0; first < record.columns; first += columns_a_piece) {
    const int64_t count = std::min(columns_a_piece, record.columns - first);
    PTQ_ASSIGN_OR_RETURN(const auto words, check.Words(info, first * width, count * width));
    for (int64_t row = 0; row < record.rows; ++row) {
      for (int64_t i = 0; row % 8 == 0 && i < count; ++i) {
        column_words[static_cast<size_t>(i)] = words[static_cast<size_t>(i * width + row / 8)];
      }
      const int shift = 4 * kNibbleOf[row % 8];
      for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
        codes[i] =
            static_cast<int8_t>(static_cast<int>(column_words[i] >> shift & 15u) - check.middle());
      }
      PTQ_RETURN_IF_ERROR(check.Codes(name, codes.data(), row, first, count));
    }
  }
  return absl::OkStatus();
}

}  // namespace ptq
