#include "formats/headers/loader_rules/gguf_header.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

// ggml_type_traits (ggml/src/ggml.c).
constexpr std::array kTypes = {GgmlType{0, "F32", 1, 4},         GgmlType{1, "F16", 1, 2},
                               GgmlType{2, "Q4_0", 32, 18},      GgmlType{3, "Q4_1", 32, 20},
                               GgmlType{6, "Q5_0", 32, 22},      GgmlType{7, "Q5_1", 32, 24},
                               GgmlType{8, "Q8_0", 32, 34},      GgmlType{9, "Q8_1", 32, 36},
                               GgmlType{10, "Q2_K", 256, 84},    GgmlType{11, "Q3_K", 256, 110},
                               GgmlType{12, "Q4_K", 256, 144},   GgmlType{13, "Q5_K", 256, 176},
                               GgmlType{14, "Q6_K", 256, 210},   GgmlType{16, "IQ2_XXS", 256, 66},
                               GgmlType{17, "IQ2_XS", 256, 74},  GgmlType{18, "IQ3_XXS", 256, 98},
                               GgmlType{19, "IQ1_S", 256, 50},   GgmlType{20, "IQ4_NL", 32, 18},
                               GgmlType{21, "IQ3_S", 256, 110},  GgmlType{22, "IQ2_S", 256, 82},
                               GgmlType{23, "IQ4_XS", 256, 136}, GgmlType{24, "I8", 1, 1},
                               GgmlType{25, "I16", 1, 2},        GgmlType{26, "I32", 1, 4},
                               GgmlType{27, "I64", 1, 8},        GgmlType{28, "F64", 1, 8},
                               GgmlType{29, "IQ1_M", 256, 56},   GgmlType{30, "BF16", 1, 2},
                               GgmlType{34, "TQ1_0", 256, 54},   GgmlType{35, "TQ2_0", 256, 66},
                               GgmlType{39, "MXFP4", 32, 17},    GgmlType{40, "NVFP4", 64, 36}};

constexpr uint32_t kString = 8;
constexpr uint32_t kArray = 9;
constexpr int64_t kMaxText = 16 << 20;
constexpr uint32_t kMaxDimensions = 4;  // GGML_MAX_DIMS
constexpr int64_t kMaxSize = int64_t{1} << 40;
constexpr size_t kPiece = 1 << 20;

// Bytes of a fixed-size value of a type of the format, 0 for strings, arrays and unknown ones.
int64_t ValueBytes(uint32_t type) {
  switch (type) {
    case 0:  // u8
    case 1:  // i8
    case 7:  // bool
      return 1;
    case 2:  // u16
    case 3:  // i16
      return 2;
    case 4:  // u32
    case 5:  // i32
    case 6:  // f32
      return 4;
    case 10:  // u64
    case 11:  // i64
    case 12:  // f64
      return 8;
    default:
      return 0;
  }
}

template <typename T>
T FromBytes(const char* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

double ToNumber(uint32_t type, const char* bytes) {
  switch (type) {
    case 0:
    case 7:
      return FromBytes<uint8_t>(bytes);
    case 1:
      return FromBytes<int8_t>(bytes);
    case 2:
      return FromBytes<uint16_t>(bytes);
    case 3:
      return FromBytes<int16_t>(bytes);
    case 4:
      return FromBytes<uint32_t>(bytes);
    case 5:
      return FromBytes<int32_t>(bytes);
    case 6:
      return static_cast<double>(FromBytes<float>(bytes));
    case 10:
      return static_cast<double>(FromBytes<uint64_t>(bytes));
    case 11:
      return static_cast<double>(FromBytes<int64_t>(bytes));
    default:
      return FromBytes<double>(bytes);
  }
}

// Reads a file from its beginning, in pieces.
class Cursor {
 public:
  explicit Cursor(const ReadableFile& file) : file_(file) {}

  int64_t position() const { return offset_ - static_cast<int64_t>(buffer_.size() - used_); }
  int64_t left() const { return file_.size() - position(); }

  absl::Status Read(void* out, int64_t size) {
    if (size > left()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("the file ends within its header, at byte %d", file_.size()));
    }
    auto* to = static_cast<char*>(out);
    while (size > 0) {
      if (used_ == buffer_.size()) PTQ_RETURN_IF_ERROR(Fill());
      const auto count = std::min<size_t>(static_cast<size_t>(size), buffer_.size() - used_);
      std::memcpy(to, buffer_.data() + used_, count);
      used_ += count;
      to += count;
      size -= static_cast<int64_t>(count);
    }
    return absl::OkStatus();
  }

  absl::Status Skip(int64_t size) {
    if (size > left()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("a value at byte %d is longer than the file", position()));
    }
    const auto buffered = static_cast<int64_t>(buffer_.size() - used_);
    if (size <= buffered) {
      used_ += static_cast<size_t>(size);
      return absl::OkStatus();
    }
    offset_ += size - buffered;
    buffer_.clear();
    used_ = 0;
    return absl::OkStatus();
  }

  template <typename T>
  absl::StatusOr<T> Take() {
    T value;
    PTQ_RETURN_IF_ERROR(Read(&value, sizeof(T)));
    return value;
  }

  absl::StatusOr<std::string> TakeText() {
    PTQ_ASSIGN_OR_RETURN(const auto length, Take<uint64_t>());
    if (length > static_cast<uint64_t>(std::min(left(), kMaxText))) {
      return absl::InvalidArgumentError(
          absl::StrFormat("a string at byte %d is longer than the file or 16 MiB", position()));
    }
    std::string text(length, '\0');
    PTQ_RETURN_IF_ERROR(Read(text.data(), static_cast<int64_t>(length)));
    return text;
  }

 private:
  absl::Status Fill() {
    buffer_.resize(std::min<size_t>(kPiece, static_cast<size_t>(file_.size() - offset_)));
    used_ = 0;
    PTQ_RETURN_IF_ERROR(file_.ReadAt(offset_, buffer_.data(), buffer_.size()));
    offset_ += static_cast<int64_t>(buffer_.size());
    return absl::OkStatus();
  }

  const ReadableFile& file_;
  int64_t offset_ = 0;  // of the next byte to fetch
  std::string buffer_;
  size_t used_ = 0;
};

absl::Status SkipElements(Cursor& cursor, uint32_t type, uint64_t count) {
  const int64_t bytes = ValueBytes(type);
  if (bytes > 0) {
    if (count > static_cast<uint64_t>(cursor.left() / bytes)) {
      return absl::InvalidArgumentError("an array is longer than the file");
    }
    return cursor.Skip(static_cast<int64_t>(count) * bytes);
  }
  if (type != kString) {
    return absl::InvalidArgumentError(absl::StrFormat("an array of unknown type %d", type));
  }
  for (uint64_t i = 0; i < count; ++i) {
    PTQ_ASSIGN_OR_RETURN(const auto length, cursor.Take<uint64_t>());
    if (length > static_cast<uint64_t>(cursor.left())) {
      return absl::InvalidArgumentError("a string is longer than the file");
    }
    PTQ_RETURN_IF_ERROR(cursor.Skip(static_cast<int64_t>(length)));
  }
  return absl::OkStatus();
}

absl::StatusOr<GgufEntry> TakeValue(Cursor& cursor) {
  GgufEntry value;
  PTQ_ASSIGN_OR_RETURN(const auto type, cursor.Take<uint32_t>());
  if (type == kString) {
    value.kind = GgufEntry::Kind::kText;
    PTQ_ASSIGN_OR_RETURN(value.text, cursor.TakeText());
    return value;
  }
  if (type == kArray) {
    value.kind = GgufEntry::Kind::kArray;
    PTQ_ASSIGN_OR_RETURN(const auto element, cursor.Take<uint32_t>());
    PTQ_ASSIGN_OR_RETURN(value.length, cursor.Take<uint64_t>());
    PTQ_RETURN_IF_ERROR(SkipElements(cursor, element, value.length));
    return value;
  }
  const int64_t bytes = ValueBytes(type);
  if (bytes == 0) return absl::InvalidArgumentError(absl::StrFormat("unknown type %d", type));
  char raw[8];
  PTQ_RETURN_IF_ERROR(cursor.Read(raw, bytes));
  value.number = ToNumber(type, raw);
  return value;
}

absl::StatusOr<GgufTensor> TakeTensor(Cursor& cursor) {
  GgufTensor tensor;
  PTQ_ASSIGN_OR_RETURN(tensor.name, cursor.TakeText());
  const std::string name = "tensor " + Quote(tensor.name);
  PTQ_ASSIGN_OR_RETURN(const auto dimensions, cursor.Take<uint32_t>());
  if (dimensions < 1 || dimensions > kMaxDimensions) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s has %d dimensions, where 1 to 4 are allowed", name, dimensions));
  }
  int64_t elements = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    PTQ_ASSIGN_OR_RETURN(const auto size, cursor.Take<uint64_t>());
    if (size == 0 || size > static_cast<uint64_t>(kMaxSize / elements)) {
      return absl::InvalidArgumentError(name + " has a size of 0 or beyond any memory");
    }
    elements *= static_cast<int64_t>(size);
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));
  }
  PTQ_ASSIGN_OR_RETURN(tensor.type, cursor.Take<uint32_t>());
  if (FindGgmlType(tensor.type) == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s has the type %d, which is unknown", name, tensor.type));
  }
  PTQ_ASSIGN_OR_RETURN(tensor.offset, cursor.Take<uint64_t>());
  return tensor;
}

}  // namespace

const GgmlType* FindGgmlType(uint32_t id) {
  const auto found = std::find_if(kTypes.begin(), kTypes.end(),
                                  [id](const GgmlType& type) { return type.id == id; });
  return found == kTypes.end() ? nullptr : &*found;
}

const GgufTensor* GgufHeader::Find(const std::string& name) const {
  const auto found =
      std::find_if(tensors.begin(), tensors.end(),
                   [&name](const GgufTensor& tensor) { return tensor.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

std::optional<int64_t> GgufHeader::Integer(const std::string& key) const {
  const auto found = values.find(key);
  if (found == values.end() || found->second.kind != GgufEntry::Kind::kNumber) return std::nullopt;
  const double number = found->second.number;
  if (!(number >= 0) || number > 1e15) return std::nullopt;
  return static_cast<int64_t>(number);
}

std::string GgufHeader::Text(const std::string& key) const {
  const auto found = values.find(key);
  return found == values.end() ? "" : found->second.text;
}

absl::StatusOr<GgufHeader> ReadGgufHeader(const ReadableFile& file) {
  Cursor cursor(file);
  char magic[4];
  PTQ_RETURN_IF_ERROR(cursor.Read(magic, sizeof(magic)));
  if (std::memcmp(magic, "GGUF", sizeof(magic)) != 0) {
    return absl::InvalidArgumentError("the file does not begin with GGUF");
  }
  GgufHeader header;
  header.file_size = file.size();
  PTQ_ASSIGN_OR_RETURN(header.version, cursor.Take<uint32_t>());
  if (header.version != 2 && header.version != 3) {
    return absl::InvalidArgumentError(
        absl::StrFormat("version %d, where llama.cpp reads 2 and 3", header.version));
  }
  PTQ_ASSIGN_OR_RETURN(const auto tensor_count, cursor.Take<uint64_t>());
  PTQ_ASSIGN_OR_RETURN(const auto value_count, cursor.Take<uint64_t>());
  // Each takes some bytes of the header.
  const auto most = static_cast<uint64_t>(cursor.left());
  if (tensor_count > most || value_count > most) {
    return absl::InvalidArgumentError("more keys or tensors than bytes");
  }
  for (uint64_t i = 0; i < value_count; ++i) {
    PTQ_ASSIGN_OR_RETURN(std::string key, cursor.TakeText());
    absl::StatusOr<GgufEntry> value = TakeValue(cursor);
    if (!value.ok()) {
      return absl::InvalidArgumentError("key " + Quote(key) + ": " +
                                        std::string(value.status().message()));
    }
    if (!header.values.try_emplace(key, *std::move(value)).second) {
      return absl::InvalidArgumentError("key " + Quote(key) + " is there twice");
    }
  }
  for (uint64_t i = 0; i < tensor_count; ++i) {
    PTQ_ASSIGN_OR_RETURN(GgufTensor tensor, TakeTensor(cursor));
    header.tensors.push_back(std::move(tensor));
  }
  header.alignment = header.Integer("general.alignment").value_or(32);
  if (header.alignment <= 0 || (header.alignment & (header.alignment - 1)) != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("general.alignment %d is no power of two", header.alignment));
  }
  header.data_offset =
      (cursor.position() + header.alignment - 1) / header.alignment * header.alignment;
  return header;
}

}  // namespace ptq
