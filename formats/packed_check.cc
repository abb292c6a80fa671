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

constexpr int64_t kPieceWords = 1 << 18;

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

class PackedCheck {
 public:
  PackedCheck(const RecordView& record, RecordCheck& file)
      : record_(record),
        file_(file),
        groups_(record.columns / record.block_size[1]),
        middle_(1 << (record.bits - 1)) {}

  int64_t groups() const { return groups_; }
  int code(int64_t row, int64_t column) const {
    return record_.codes[row * record_.columns + column] + middle_;
  }
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
  for (int64_t first = 0; first < record.rows; first += rows_a_piece) {
    const int64_t count = std::min(rows_a_piece, record.rows - first);
    PTQ_ASSIGN_OR_RETURN(const auto words, check.Words(info, first * width, count * width));
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t* row_words = words.data() + i * width;
      for (int64_t column = 0; column < record.columns; ++column) {
        const int code = CodeAt(row_words, 1, column, bits);
        if (code != check.code(first + i, column)) {
          return check.Wrong(name, code, check.code(first + i, column), first + i, column);
        }
      }
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
  for (int64_t first = 0; first < units; first += units_a_piece) {
    const int64_t count = std::min(units_a_piece, units - first);
    const int64_t stride = record.rows;
    PTQ_ASSIGN_OR_RETURN(const auto words,
                         check.Words(info, first * bits * stride, count * bits * stride));
    for (int64_t row = 0; row < record.rows; ++row) {
      for (int64_t i = 0; i < 32 * count; ++i) {
        const int code = CodeAt(words.data() + row, stride, i, bits);
        const int64_t column = 32 * first + i;
        if (code != check.code(row, column)) {
          return check.Wrong(name, code, check.code(row, column), row, column);
        }
      }
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
  for (int64_t first = 0; first < record.columns; first += columns_a_piece) {
    const int64_t count = std::min(columns_a_piece, record.columns - first);
    PTQ_ASSIGN_OR_RETURN(const auto words, check.Words(info, first * width, count * width));
    for (int64_t row = 0; row < record.rows; ++row) {
      for (int64_t i = 0; i < count; ++i) {
        const int code = code_at(words.data(), i, row);
        if (code != check.code(row, first + i)) {
          return check.Wrong(name, code, check.code(row, first + i), row, first + i);
        }
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace ptq
