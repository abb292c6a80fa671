#include "formats/record_check.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/torchao_metadata.h"

namespace ptq {
namespace {

constexpr int64_t kPieceBytes = 1 << 20;

float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 0x1F;
  const uint32_t fraction = half & 0x3FF;
  if (exponent == 0) {  // zero or subnormal: a multiple of 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

float BFloat16ToFloat(uint16_t value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

// To nearest, ties to even; what is too large becomes infinite. `value` is finite.
uint16_t FloatToBFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) return sign | 0x7C00;
  // Below 2^-14 the spacing is 2^-24: scaled by 2^24 the value is the fraction field itself, which
  // nearbyint rounds to even.
  if (magnitude < 0x1p-14f) {
    return sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24f));
  }
  const uint32_t absolute = bits & 0x7FFFFFFF;
  const uint32_t rounded = absolute + 0xFFF + ((absolute >> 13) & 1);
  return sign | static_cast<uint16_t>((rounded - (uint32_t{112} << 23)) >> 13);
}

struct Rounded {
  uint32_t bits = 0;
  bool fits = false;  // finite
};

Rounded RoundTo(DType dtype, float value) {
  if (!std::isfinite(value)) return {};
  if (dtype == DType::kF32) return {std::bit_cast<uint32_t>(value), true};
  const bool half = dtype == DType::kF16;
  const uint32_t bits = half ? FloatToHalf(value) : FloatToBFloat16(value);
  return {bits, (bits & 0x7FFF) < (half ? 0x7C00u : 0x7F80u)};
}

template <typename T>
T Load(const char* data, int64_t index) {
  T value;
  std::memcpy(&value, data + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

float ScaleOf(const RecordView& record, int64_t index) {
  return DecodeFloat(static_cast<const char*>(record.scale), index, record.scale_dtype);
}

float Decode(int code, int zero_point, float scale) {
  return static_cast<float>(code - zero_point) * scale;
}

// A group's values: (code - zero_point) * scale - minimum.
struct GroupDecoder {
  float scale = 0.0f;
  int zero_point = 0;
  float minimum = 0.0f;

  float operator()(int code) const { return Decode(code, zero_point, scale) - minimum; }
};

// Of group `group` of a row of K/g groups, counted over all rows; of a K-quant too.
GroupDecoder DecoderOf(const RecordView& record, int64_t group) {
  if (record.k_quant == KQuant::kNone) {
    return {ScaleOf(record, group), record.zero_point[group], 0.0f};
  }
  const int64_t super = group * record.block_size[1] / kSuperBlock;
  const auto half = [super](const void* data) {
    return DecodeFloat(static_cast<const char*>(data), super, DType::kF16);
  };
  GroupDecoder decoder;
  decoder.scale = half(record.super_scale) * static_cast<float>(record.sub_scale[group]);
  if (record.super_minimum == nullptr) return decoder;
  decoder.zero_point = -(1 << (record.bits - 1));
  decoder.minimum = half(record.super_minimum) * static_cast<float>(record.sub_minimum[group]);
  return decoder;
}

// What the codes of a group become in a dtype. Where groups have more values than there are codes,
// each code is rounded once a group.
class GroupRounder {
 public:
  GroupRounder(DType dtype, int bits, int64_t values)
      : dtype_(dtype), middle_(1 << (bits - 1)), has_table_(values > 2 * middle_) {}

  void SetGroup(const GroupDecoder& decoder) {
    if (!has_table_) return;
    all_fit_ = true;
    for (int code = -middle_; code < middle_; ++code) {
      const Rounded rounded = RoundTo(dtype_, decoder(code));
      all_fit_ = all_fit_ && rounded.fits;
      table_[static_cast<uint8_t>(code)] = rounded.bits;
    }
  }

  // Whether these values are known to be those of the codes; false says nothing.
  bool AreSame(const char* stored, const int8_t* codes, int64_t count) const {
    if (!has_table_ || !all_fit_) return false;
    return dtype_ == DType::kF32 ? AreSameAs<uint32_t>(stored, codes, count)
                                 : AreSameAs<uint16_t>(stored, codes, count);
  }

 private:
  template <typename Bits>
  bool AreSameAs(const char* stored, const int8_t* codes, int64_t count) const {
    uint32_t differences = 0;
    uint8_t largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      differences |= Load<Bits>(stored, i) ^ table_[static_cast<uint8_t>(codes[i])];
      largest = std::max(largest, static_cast<uint8_t>(codes[i] + middle_));
    }
    return differences == 0 && largest < 2 * middle_;
  }

  const DType dtype_;
  const int middle_;
  const bool has_table_;
  bool all_fit_ = false;
  std::array<uint32_t, 256> table_{};  // by the code's byte
};

// Whether the bytes are these codes, all within [lowest, highest]. With the same scale and zero
// point they decode to the same values; what differs is looked for one by one.
bool AreSameCodes(const char* stored, const int8_t* codes, int64_t count, int lowest, int highest) {
  uint8_t largest = 0;  // above the lowest; those below it wrap around
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, static_cast<uint8_t>(codes[i] - lowest));
  }
  return largest <= highest - lowest && std::memcmp(stored, codes, static_cast<size_t>(count)) == 0;
}

std::string At(int64_t row, int64_t column) {
  return absl::StrCat(" at [", row, ", ", column, "]");
}

}  // namespace

float DecodeFloat(const char* data, int64_t index, DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return HalfToFloat(Load<uint16_t>(data, index));
    case DType::kBF16:
      return BFloat16ToFloat(Load<uint16_t>(data, index));
    default:
      return Load<float>(data, index);
  }
}

RecordCheck::RecordCheck(ReadableFile file, SafetensorsHeader header)
    : file_(std::move(file)), header_(std::move(header)) {
  for (size_t i = 0; i < header_.tensors.size(); ++i) tensors_[header_.tensors[i].name] = i;
}

absl::StatusOr<RecordCheck> RecordCheck::Open(const std::string& path) {
  PTQ_ASSIGN_OR_RETURN(auto file, ReadableFile::Open(path));
  auto header = ReadSafetensorsHeader(file);
  if (!header.ok()) return absl::DataLossError(Message(header.status()));
  return RecordCheck(std::move(file), *std::move(header));
}

absl::Status RecordCheck::Wrong(const std::string& name, const std::string& what) const {
  return absl::DataLossError(
      absl::StrCat(file_.path(), ": tensor ", name, " was not written as it should be: ", what));
}

absl::StatusOr<TensorInfo> RecordCheck::Find(const std::string& name, DType dtype,
                                             const std::vector<int64_t>& shape) {
  const auto entry = tensors_.find(name);
  if (entry == tensors_.end()) return Wrong(name, "missing");
  seen_.insert(name);
  const TensorInfo& info = header_.tensors[entry->second];
  if (info.dtype != dtype) return Wrong(name, absl::StrCat("dtype ", DTypeName(info.dtype)));
  if (info.shape != shape) return Wrong(name, "another shape");
  return info;
}

absl::Status RecordCheck::ReadPiece(const TensorInfo& info, int64_t begin, int64_t size,
                                    std::string& bytes) const {
  bytes.resize(static_cast<size_t>(size));
  return file_.ReadAt(header_.data_offset + info.begin + begin, bytes.data(), bytes.size());
}

absl::Status RecordCheck::CheckAffine(const RecordView& record, DType dtype) {
  const std::string weight = record.module + ".weight";
  const auto text = header_.metadata.find(weight);
  if (text == header_.metadata.end()) return Wrong(weight, "no metadata");
  const auto parsed = ParseTorchaoTensor(text->second);
  if (!parsed.ok()) return Wrong(weight, Message(parsed.status()));
  const TorchaoTensorDescription& description = *parsed;
  if (description.dtype != dtype) return Wrong(weight, "the metadata name another dtype");
  if (description.k_quant != record.k_quant) return Wrong(weight, "the metadata name another type");
  if (description.block_size != record.block_size || description.bits != record.bits) {
    return Wrong(weight, "the metadata name another block_size or width");
  }

  if (record.k_quant != KQuant::kNone) return CheckKQuant(record);
  // Everything below goes by the file's own description.
  const auto [block_rows, block_columns] = description.block_size;
  const std::vector<int64_t> groups = {record.rows / block_rows, record.columns / block_columns};
  const DType scale_dtype =
      description.tensor_class == TorchaoClass::kInt8 ? DType::kF32 : record.scale_dtype;
  const std::string prefix = record.module + "._weight_";
  PTQ_ASSIGN_OR_RETURN(const TensorInfo codes,
                       Find(prefix + "qdata", DType::kI8, {record.rows, record.columns}));
  PTQ_ASSIGN_OR_RETURN(const TensorInfo scales, Find(prefix + "scale", scale_dtype, groups));
  PTQ_ASSIGN_OR_RETURN(const TensorInfo zeros, Find(prefix + "zero_point", DType::kI8, groups));
  std::string scale_bytes;
  std::string zero_bytes;
  PTQ_RETURN_IF_ERROR(ReadPiece(scales, 0, scales.bytes(), scale_bytes));
  PTQ_RETURN_IF_ERROR(ReadPiece(zeros, 0, zeros.bytes(), zero_bytes));

  const int lowest = -(1 << (description.bits - 1));
  const int highest = (1 << (description.bits - 1)) - 1;
  const int64_t rows_a_piece = std::max<int64_t>(1, kPieceBytes / record.columns);
  std::string piece;
  for (int64_t first = 0; first < record.rows; first += rows_a_piece) {
    const int64_t count = std::min(rows_a_piece, record.rows - first);
    PTQ_RETURN_IF_ERROR(ReadPiece(codes, first * record.columns, count * record.columns, piece));
    for (int64_t row = first; row < first + count; ++row) {
      const char* stored = piece.data() + (row - first) * record.columns;
      const int8_t* original = record.codes + row * record.columns;
      for (int64_t group = 0; group < groups[1]; ++group) {
        const int64_t index = row / block_rows * groups[1] + group;
        const float scale = DecodeFloat(scale_bytes.data(), index, scale_dtype);
        const int zero = static_cast<int8_t>(zero_bytes[static_cast<size_t>(index)]);
        const int64_t begin = group * block_columns;
        if (!std::isfinite(scale) || scale == 0.0f) {
          return Wrong(prefix + "scale", "0 or not finite" + At(row, begin));
        }
        const float original_scale = ScaleOf(record, index);
        const int original_zero = record.zero_point[index];
        if (zero == original_zero &&
            std::bit_cast<uint32_t>(scale) == std::bit_cast<uint32_t>(original_scale) &&
            AreSameCodes(stored + begin, original + begin, block_columns, lowest, highest)) {
          continue;
        }
        for (int64_t column = begin; column < begin + block_columns; ++column) {
          const int code = static_cast<int8_t>(stored[column]);
          if (code < lowest || code > highest) {
            return Wrong(prefix + "qdata", absl::StrCat("code ", code, At(row, column)));
          }
          const float value = Decode(code, zero, scale);
          const float expected = Decode(original[column], original_zero, original_scale);
          if (code != original[column] ||
              std::bit_cast<uint32_t>(value) != std::bit_cast<uint32_t>(expected)) {
            return Wrong(
                weight, absl::StrCat("decodes to ", value, ", not to ", expected, At(row, column)));
          }
        }
      }
    }
  }
  return absl::OkStatus();
}

absl::Status RecordCheck::CheckKQuant(const RecordView& record) {
  const std::string prefix = record.module + "._weight_";
  const int64_t groups = record.columns / record.block_size[1];
  struct Stored {
    const char* name;
    DType dtype;
    int64_t columns;
    const void* data;
  };
  const int64_t super_blocks = record.columns / kSuperBlock;
  for (const Stored& stored :
       {Stored{"qdata", DType::kI8, record.columns, record.codes},
        Stored{"super_scale", DType::kF16, super_blocks, record.super_scale},
        Stored{"sub_scale", DType::kI8, groups, record.sub_scale},
        Stored{"super_minimum", DType::kF16, super_blocks, record.super_minimum},
        Stored{"sub_minimum", DType::kI8, groups, record.sub_minimum}}) {
    if (stored.data == nullptr) continue;
    PTQ_ASSIGN_OR_RETURN(const TensorInfo info,
                         Find(prefix + stored.name, stored.dtype, {record.rows, stored.columns}));
    const auto* original = static_cast<const char*>(stored.data);
    std::string piece;
    for (int64_t offset = 0; offset < info.bytes(); offset += kPieceBytes) {
      const int64_t count = std::min(kPieceBytes, info.bytes() - offset);
      PTQ_RETURN_IF_ERROR(ReadPiece(info, offset, count, piece));
      if (std::memcmp(piece.data(), original + offset, piece.size()) == 0) continue;
      return Wrong(info.name, absl::StrCat("other bytes after byte ", offset));
    }
  }
  return absl::OkStatus();
}

absl::Status RecordCheck::CheckDequantized(const RecordView& record, DType dtype) {
  const std::string name = record.module + ".weight";
  const int64_t lines = record.transposed ? record.columns : record.rows;
  const int64_t width = record.transposed ? record.rows : record.columns;
  PTQ_ASSIGN_OR_RETURN(const TensorInfo info, Find(name, dtype, {lines, width}));
  const auto [block_rows, block_columns] = record.block_size;
  const int64_t groups = record.columns / block_columns;
  const int64_t element = DTypeBits(dtype) / 8;
  const int64_t lines_a_piece = std::max<int64_t>(1, kPieceBytes / (width * element));
  // Values of one scale that lie next to each other.
  const int64_t run = record.transposed ? std::min(block_rows, width) : block_columns;
  GroupRounder rounded(dtype, record.bits, run);
  std::string piece;
  for (int64_t first = 0; first < lines; first += lines_a_piece) {
    const int64_t count = std::min(lines_a_piece, lines - first);
    PTQ_RETURN_IF_ERROR(ReadPiece(info, first * width * element, count * width * element, piece));
    for (int64_t line = first; line < first + count; ++line) {
      for (int64_t begin = 0; begin < width; begin += run) {
        const int64_t first_row = record.transposed ? begin : line;
        const int64_t first_column = record.transposed ? line : begin;
        const int64_t qparam = first_row / block_rows * groups + first_column / block_columns;
        const GroupDecoder decoder = DecoderOf(record, qparam);
        rounded.SetGroup(decoder);
        if (!record.transposed &&
            rounded.AreSame(piece.data() + ((line - first) * width + begin) * element,
                            record.codes + line * record.columns + begin, run)) {
          continue;
        }
        for (int64_t place = begin; place < begin + run; ++place) {
          const int64_t row = record.transposed ? place : line;
          const int64_t column = record.transposed ? line : place;
          const int code = record.codes[row * record.columns + column];
          const Rounded expected = RoundTo(dtype, decoder(code));
          if (!expected.fits) {
            return absl::FailedPreconditionError(
                absl::StrCat("tensor ", name, ": the value ", decoder(code), At(row, column),
                             " does not fit in ", DTypeName(dtype)));
          }
          const int64_t index = (line - first) * width + place;
          const uint32_t stored = dtype == DType::kF32 ? Load<uint32_t>(piece.data(), index)
                                                       : Load<uint16_t>(piece.data(), index);
          if (stored != expected.bits) return Wrong(name, "another value" + At(row, column));
        }
      }
    }
  }
  return absl::OkStatus();
}

absl::Status RecordCheck::CheckBytes(
    const std::string& name, int64_t size,
    const std::function<absl::Status(int64_t offset, int64_t size, void* out)>& read) {
  const auto entry = tensors_.find(name);
  if (entry == tensors_.end()) return Wrong(name, "missing");
  seen_.insert(name);
  const TensorInfo& info = header_.tensors[entry->second];
  if (info.bytes() != size) return Wrong(name, "another size");
  std::string piece;
  std::string expected;
  for (int64_t offset = 0; offset < size; offset += kPieceBytes) {
    const int64_t count = std::min(kPieceBytes, size - offset);
    PTQ_RETURN_IF_ERROR(ReadPiece(info, offset, count, piece));
    expected.resize(piece.size());
    PTQ_RETURN_IF_ERROR(read(offset, count, expected.data()));
    if (piece != expected) {
      return Wrong(name, absl::StrCat("other bytes after byte ", offset));
    }
  }
  return absl::OkStatus();
}

absl::Status RecordCheck::CheckNothingElse() const {
  for (const auto& [name, position] : tensors_) {
    if (!seen_.contains(name)) return Wrong(name, "it does not belong into this file");
  }
  return absl::OkStatus();
}

}  // namespace ptq
