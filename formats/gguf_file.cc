#include "formats/gguf_file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <future>
#include <optional>
#include <set>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/hashing_writer.h"
#include "formats/headers/loader_rules/gguf_header.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint32_t kVersion = 3;
constexpr int64_t kAlignment = 32;
constexpr size_t kMaxName = 63;

// The numbers of the value kinds in a file.
enum class ValueKind : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

int64_t Padding(int64_t size, int64_t alignment = kAlignment) {
  return (alignment - size % alignment) % alignment;
}

template <typename T>
void Put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void PutString(std::string& out, const std::string& text) {
  Put<uint64_t>(out, text.size());
  out += text;
}

template <typename T>
void PutArray(std::string& out, ValueKind kind, const std::vector<T>& values) {
  Put(out, ValueKind::kArray);
  Put(out, kind);
  Put<uint64_t>(out, values.size());
  for (const auto& value : values) {
    if constexpr (std::is_same_v<T, std::string>) {
      PutString(out, value);
    } else if constexpr (std::is_same_v<T, bool>) {
      Put<uint8_t>(out, value);
    } else {
      Put<T>(out, value);
    }
  }
}

// Writes a value with its kind.
struct ValueWriter {
  std::string& out;

  void operator()(bool value) const {
    Put(out, ValueKind::kBool);
    Put<uint8_t>(out, value);
  }
  void operator()(uint32_t value) const {
    Put(out, ValueKind::kUint32);
    Put(out, value);
  }
  void operator()(int64_t value) const {
    Put(out, ValueKind::kInt64);
    Put(out, value);
  }
  void operator()(float value) const {
    Put(out, ValueKind::kFloat32);
    Put(out, value);
  }
  void operator()(const std::string& value) const {
    Put(out, ValueKind::kString);
    PutString(out, value);
  }
  void operator()(const std::vector<bool>& values) const {
    PutArray(out, ValueKind::kBool, values);
  }
  void operator()(const std::vector<int32_t>& values) const {
    PutArray(out, ValueKind::kInt32, values);
  }
  void operator()(const std::vector<float>& values) const {
    PutArray(out, ValueKind::kFloat32, values);
  }
  void operator()(const std::vector<std::string>& values) const {
    PutArray(out, ValueKind::kString, values);
  }
};

std::string BuildHeader(const GgufMetadata& metadata,
                        const std::vector<GgufTensorSource>& tensors) {
  std::string header;
  Put(header, kMagic);
  Put(header, kVersion);
  Put<uint64_t>(header, tensors.size());
  Put<uint64_t>(header, metadata.size());
  for (const auto& [key, value] : metadata) {
    PutString(header, key);
    std::visit(ValueWriter{header}, value);
  }
  for (const GgufTensorSource& tensor : tensors) {
    const GgufTensorInfo& info = tensor.info;
    PutString(header, info.name);
    Put<uint32_t>(header, static_cast<uint32_t>(info.shape.size()));
    for (auto extent = info.shape.rbegin(); extent != info.shape.rend(); ++extent) {
      Put<uint64_t>(header, static_cast<uint64_t>(*extent));
    }
    Put(header, info.type);
    Put<uint64_t>(header, static_cast<uint64_t>(info.offset));
  }
  header.append(static_cast<size_t>(Padding(static_cast<int64_t>(header.size()))), '\0');
  return header;
}

// Reads a header from its beginning.
class HeaderReader {
 public:
  explicit HeaderReader(const ReadableFile& file) : file_(file) {}

  template <typename T>
  absl::Status Get(T& value) {
    return GetBytes(&value, sizeof(value));
  }
  absl::Status GetString(std::string& text) {
    uint64_t size = 0;
    PTQ_RETURN_IF_ERROR(Get(size));
    PTQ_RETURN_IF_ERROR(CheckCount(size, 1));
    text.resize(size);
    return GetBytes(text.data(), size);
  }
  // `count` items of at least `bytes` each can be in the rest of the file.
  absl::Status CheckCount(uint64_t count, uint64_t bytes) const {
    const auto left = static_cast<uint64_t>(file_.size() - position_);
    if (count <= left / bytes) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(file_.path(), ": the header is cut off"));
  }
  int64_t position() const { return position_; }

 private:
  absl::Status GetBytes(void* out, size_t size) {
    PTQ_RETURN_IF_ERROR(CheckCount(size, 1));
    // Pieces of a megabyte: a header is millions of small values.
    if (position_ < begin_ ||
        position_ + static_cast<int64_t>(size) > begin_ + static_cast<int64_t>(buffer_.size())) {
      begin_ = position_;
      const int64_t wanted = std::max<int64_t>(static_cast<int64_t>(size), 1 << 20);
      buffer_.resize(static_cast<size_t>(std::min(wanted, file_.size() - begin_)));
      PTQ_RETURN_IF_ERROR(file_.ReadAt(begin_, buffer_.data(), buffer_.size()));
    }
    std::memcpy(out, buffer_.data() + (position_ - begin_), size);
    position_ += static_cast<int64_t>(size);
    return absl::OkStatus();
  }

  const ReadableFile& file_;
  std::string buffer_;
  int64_t begin_ = 0;  // of the buffer in the file
  int64_t position_ = 0;
};

// A number of the file's kind T.
template <typename T>
absl::StatusOr<T> GetNumber(HeaderReader& reader) {
  T value{};
  PTQ_RETURN_IF_ERROR(reader.Get(value));
  return value;
}

// `count` numbers of kind T as items; kInvalidArgument for one that does not fit.
template <typename Item, typename T>
absl::StatusOr<GgufValue> GetNumbers(HeaderReader& reader, uint64_t count) {
  std::vector<Item> values(count);
  for (uint64_t i = 0; i < count; ++i) {
    PTQ_ASSIGN_OR_RETURN(const T value, GetNumber<T>(reader));
    values[i] = static_cast<Item>(value);
    if (std::is_integral_v<T> && static_cast<T>(values[i]) != value) {
      return absl::InvalidArgumentError("an array of numbers beyond 32 bits");
    }
  }
  return GgufValue(std::move(values));
}

absl::StatusOr<GgufValue> GetArray(HeaderReader& reader) {
  ValueKind kind = ValueKind::kArray;
  uint64_t count = 0;
  PTQ_RETURN_IF_ERROR(reader.Get(kind));
  PTQ_RETURN_IF_ERROR(reader.Get(count));
  PTQ_RETURN_IF_ERROR(reader.CheckCount(count, 1));
  switch (kind) {
    case ValueKind::kUint8:
      return GetNumbers<int32_t, uint8_t>(reader, count);
    case ValueKind::kInt8:
      return GetNumbers<int32_t, int8_t>(reader, count);
    case ValueKind::kUint16:
      return GetNumbers<int32_t, uint16_t>(reader, count);
    case ValueKind::kInt16:
      return GetNumbers<int32_t, int16_t>(reader, count);
    case ValueKind::kUint32:
      return GetNumbers<int32_t, uint32_t>(reader, count);
    case ValueKind::kInt32:
      return GetNumbers<int32_t, int32_t>(reader, count);
    case ValueKind::kUint64:
      return GetNumbers<int32_t, uint64_t>(reader, count);
    case ValueKind::kInt64:
      return GetNumbers<int32_t, int64_t>(reader, count);
    case ValueKind::kFloat32:
      return GetNumbers<float, float>(reader, count);
    case ValueKind::kFloat64:
      return GetNumbers<float, double>(reader, count);
    case ValueKind::kBool: {
      std::vector<bool> values(count);
      for (size_t i = 0; i < count; ++i) {
        PTQ_ASSIGN_OR_RETURN(const auto value, GetNumber<uint8_t>(reader));
        values[i] = value != 0;
      }
      return GgufValue(std::move(values));
    }
    case ValueKind::kString: {
      PTQ_RETURN_IF_ERROR(reader.CheckCount(count, sizeof(uint64_t)));
      std::vector<std::string> values(count);
      for (std::string& value : values) PTQ_RETURN_IF_ERROR(reader.GetString(value));
      return GgufValue(std::move(values));
    }
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("an array of kind ", static_cast<uint32_t>(kind)));
  }
}

// An integer as a uint32_t where it fits.
template <typename T>
absl::StatusOr<GgufValue> GetInteger(HeaderReader& reader) {
  PTQ_ASSIGN_OR_RETURN(const T value, GetNumber<T>(reader));
  if (std::in_range<uint32_t>(value)) return GgufValue(static_cast<uint32_t>(value));
  if (std::in_range<int64_t>(value)) return GgufValue(static_cast<int64_t>(value));
  return absl::InvalidArgumentError("an integer beyond 63 bits");
}

absl::StatusOr<GgufValue> GetValue(HeaderReader& reader) {
  ValueKind kind = ValueKind::kArray;
  PTQ_RETURN_IF_ERROR(reader.Get(kind));
  switch (kind) {
    case ValueKind::kUint8:
      return GetInteger<uint8_t>(reader);
    case ValueKind::kInt8:
      return GetInteger<int8_t>(reader);
    case ValueKind::kUint16:
      return GetInteger<uint16_t>(reader);
    case ValueKind::kInt16:
      return GetInteger<int16_t>(reader);
    case ValueKind::kUint32:
      return GetInteger<uint32_t>(reader);
    case ValueKind::kInt32:
      return GetInteger<int32_t>(reader);
    case ValueKind::kUint64:
      return GetInteger<uint64_t>(reader);
    case ValueKind::kInt64:
      return GetInteger<int64_t>(reader);
    case ValueKind::kBool: {
      PTQ_ASSIGN_OR_RETURN(const auto value, GetNumber<uint8_t>(reader));
      return GgufValue(value != 0);
    }
    case ValueKind::kFloat32: {
      PTQ_ASSIGN_OR_RETURN(const float value, GetNumber<float>(reader));
      return GgufValue(value);
    }
    case ValueKind::kFloat64: {
      PTQ_ASSIGN_OR_RETURN(const double value, GetNumber<double>(reader));
      return GgufValue(static_cast<float>(value));
    }
    case ValueKind::kString: {
      std::string value;
      PTQ_RETURN_IF_ERROR(reader.GetString(value));
      return GgufValue(std::move(value));
    }
    case ValueKind::kArray:
      return GetArray(reader);
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("a value of kind ", static_cast<uint32_t>(kind)));
  }
}

// general.alignment, or what it is without that key.
absl::StatusOr<int64_t> AlignmentOf(const GgufMetadata& metadata) {
  for (const auto& [key, value] : metadata) {
    if (key != "general.alignment") continue;
    const auto* alignment = std::get_if<uint32_t>(&value);
    if (alignment != nullptr && std::has_single_bit(*alignment)) return int64_t{*alignment};
    return absl::InvalidArgumentError("general.alignment is no power of two");
  }
  return kAlignment;
}

bool IsKnown(GgufType type) { return TraitsOf(type).name != nullptr; }

absl::StatusOr<GgufTensorInfo> GetTensorInfo(HeaderReader& reader) {
  GgufTensorInfo info;
  PTQ_RETURN_IF_ERROR(reader.GetString(info.name));
  uint32_t rank = 0;
  PTQ_RETURN_IF_ERROR(reader.Get(rank));
  if (rank < 1 || rank > 4) return absl::InvalidArgumentError(absl::StrCat("rank ", rank));
  int64_t count = 1;
  for (uint32_t i = 0; i < rank; ++i) {
    uint64_t extent = 0;
    PTQ_RETURN_IF_ERROR(reader.Get(extent));
    if (extent < 1 || extent > (uint64_t{1} << 32) ||
        count > (int64_t{1} << 42) / static_cast<int64_t>(extent)) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(info.name), ": its shape"));
    }
    count *= static_cast<int64_t>(extent);
    info.shape.insert(info.shape.begin(), static_cast<int64_t>(extent));
  }
  PTQ_RETURN_IF_ERROR(reader.Get(info.type));
  if (!IsKnown(info.type)) {
    const GgmlType* type = FindGgmlType(static_cast<uint32_t>(info.type));
    return absl::FailedPreconditionError(absl::StrCat(
        "tensor ", Quote(info.name), " is ",
        type == nullptr ? absl::StrCat("of type ", static_cast<uint32_t>(info.type)) : type->name,
        ", which no record holds; Q8_0, Q4_0, Q5_0, Q4_1, Q5_1 and plain types are read"));
  }
  if (info.shape.back() % TraitsOf(info.type).elements != 0) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(info.name), ": type ",
                                                   static_cast<uint32_t>(info.type), " of shape ",
                                                   ShapeToString(info.shape)));
  }
  uint64_t offset = 0;
  PTQ_RETURN_IF_ERROR(reader.Get(offset));
  info.offset = static_cast<int64_t>(std::min<uint64_t>(offset, uint64_t{1} << 60));
  return info;
}

}  // namespace

int64_t GgufTensorInfo::bytes() const {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  const GgufTypeTraits traits = TraitsOf(type);
  return count / traits.elements * traits.bytes;
}

absl::StatusOr<std::string> WriteGguf(
    const std::string& path, const GgufMetadata& metadata, std::vector<GgufTensorSource> tensors,
    const std::function<absl::Status(const std::string&)>& check) {
  int64_t offset = 0;
  std::set<std::string> names;
  for (GgufTensorSource& tensor : tensors) {
    if (tensor.info.name.size() > kMaxName || !names.insert(tensor.info.name).second) {
      return absl::InternalError(absl::StrCat(path, ": the name ", Quote(tensor.info.name),
                                              " is too long or there twice"));
    }
    tensor.info.offset = offset;
    offset += tensor.info.bytes() + Padding(tensor.info.bytes());
  }
  PTQ_ASSIGN_OR_RETURN(auto created, AtomicFileWriter::Create(path));
  HashingWriter file(std::move(created));
  const std::string header = BuildHeader(metadata, tensors);
  PTQ_RETURN_IF_ERROR(file.Append(header.data(), header.size()));
  const std::string zeros(kAlignment, '\0');
  for (GgufTensorSource& tensor : tensors) {
    int64_t written = 0;
    PTQ_RETURN_IF_ERROR(tensor.write([&](const void* data, size_t size) {
      written += static_cast<int64_t>(size);
      return file.Append(data, size);
    }));
    if (written != tensor.info.bytes()) {
      return absl::InternalError(absl::StrCat(path, ": tensor ", tensor.info.name, ": ", written,
                                              " bytes instead of ", tensor.info.bytes()));
    }
    PTQ_RETURN_IF_ERROR(file.Append(zeros.data(), static_cast<size_t>(Padding(written))));
    tensor.write = nullptr;  // lets go of what it holds
  }
  // The check reads what it compares from the page cache, while the rest goes to the disk.
  auto syncing = std::async(std::launch::async, [&] { return file.file().Sync(); });
  const absl::Status checked = check ? check(file.file().temporary_path()) : absl::OkStatus();
  PTQ_RETURN_IF_ERROR(syncing.get());
  PTQ_RETURN_IF_ERROR(checked);
  PTQ_RETURN_IF_ERROR(file.file().Commit());
  return file.Digest();
}

absl::StatusOr<GgufFile> GgufFile::Open(const std::string& path) {
  PTQ_ASSIGN_OR_RETURN(auto opened, ReadableFile::Open(path));
  GgufFile file(std::move(opened));
  const auto wrong = [&path](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
  };
  HeaderReader reader(file.file_);
  uint32_t magic = 0;
  uint32_t version = 0;
  uint64_t tensors = 0;
  uint64_t values = 0;
  PTQ_RETURN_IF_ERROR(reader.Get(magic));
  PTQ_RETURN_IF_ERROR(reader.Get(version));
  if (magic != kMagic || (version != 2 && version != kVersion)) {
    return wrong("not a GGUF file of version 2 or 3");
  }
  PTQ_RETURN_IF_ERROR(reader.Get(tensors));
  PTQ_RETURN_IF_ERROR(reader.Get(values));
  PTQ_RETURN_IF_ERROR(reader.CheckCount(values, 13));
  PTQ_RETURN_IF_ERROR(reader.CheckCount(tensors, 24));
  std::set<std::string> keys;
  for (uint64_t i = 0; i < values; ++i) {
    std::string key;
    PTQ_RETURN_IF_ERROR(reader.GetString(key));
    if (!keys.insert(key).second) return wrong(absl::StrCat(Quote(key), " is there twice"));
    auto value = GetValue(reader);
    if (!value.ok()) {
      return wrong(absl::StrCat(Quote(key), ": ", std::string(value.status().message())));
    }
    file.metadata_.emplace_back(std::move(key), *std::move(value));
  }
  for (uint64_t i = 0; i < tensors; ++i) {
    auto info = GetTensorInfo(reader);
    if (!info.ok()) return Annotate(info.status(), path);
    if (!file.by_name_.emplace(info->name, file.tensors_.size()).second) {
      return wrong(absl::StrCat("tensor ", Quote(info->name), " is there twice"));
    }
    file.tensors_.push_back(*std::move(info));
  }
  const auto alignment = AlignmentOf(file.metadata_);
  if (!alignment.ok()) return Annotate(alignment.status(), path);
  file.data_offset_ = reader.position() + Padding(reader.position(), *alignment);
  for (const GgufTensorInfo& tensor : file.tensors_) {
    if (tensor.offset % *alignment != 0 ||
        tensor.offset + tensor.bytes() > file.file_.size() - file.data_offset_) {
      return wrong(absl::StrCat("tensor ", Quote(tensor.name), " is not within the file"));
    }
  }
  return file;
}

const GgufTensorInfo* GgufFile::Find(const std::string& name) const {
  const auto entry = by_name_.find(name);
  return entry == by_name_.end() ? nullptr : &tensors_[entry->second];
}

absl::Status GgufFile::Read(const GgufTensorInfo& tensor, int64_t offset, int64_t size,
                            void* out) const {
  return file_.ReadAt(data_offset_ + tensor.offset + offset, out, static_cast<size_t>(size));
}

}  // namespace ptq
