#include "formats/headers/safetensors_header.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/json.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

constexpr int64_t kMaxHeaderBytes = 100'000'000;  // the reference reader's limit
constexpr int64_t kLengthBytes = 8;
constexpr size_t kMaxTensors = 1'000'000;
constexpr size_t kMaxNameBytes = 512;
constexpr size_t kMaxRank = 8;

// Fills a SafetensorsHeader straight from the parser's events: a document tree would take many
// times the header's size, and plain parsing would let repeated names and huge integers through.
class HeaderHandler final : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_integer(number_integer_t) override { return Unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t& text) override {
    return Unexpected("the number " + text.substr(0, 40));
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::kShape && place_ != Place::kOffsets) return Unexpected("a number");
    if (value > static_cast<uint64_t>(INT64_MAX)) return Unexpected("a number above 2^63 - 1");
    if (place_ == Place::kShape) {
      if (current_.shape.size() == kMaxRank) {
        return Fail(absl::StrFormat("tensor %s has more than %d dimensions", Quote(current_.name),
                                    kMaxRank));
      }
      current_.shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (offsets_ == 2) return Unexpected("a third number");
    (offsets_++ == 0 ? current_.begin : current_.end) = static_cast<int64_t>(value);
    return true;
  }
  bool string(string_t& value) override {
    if (place_ == Place::kMetadata) {
      header_.metadata[key_] = std::move(value);
      return true;
    }
    if (place_ != Place::kTensor || key_ != "dtype") return Unexpected("a string");
    const std::optional<DType> dtype = DTypeFromName(value);
    if (!dtype.has_value()) {
      return Fail(absl::StrFormat("tensor %s has the unknown dtype %s", Quote(current_.name),
                                  Quote(value)));
    }
    current_.dtype = *dtype;
    return true;
  }
  bool binary(binary_t&) override { return Unexpected("binary data"); }

  bool start_object(std::size_t) override {
    if (place_ == Place::kStart) {
      place_ = Place::kRoot;
      return true;
    }
    if (place_ != Place::kRoot) return Unexpected("an object");
    if (key_ == "__metadata__") {
      place_ = Place::kMetadata;
      return true;
    }
    current_ = TensorInfo();
    current_.name = std::move(key_);
    has_dtype_ = has_shape_ = has_offsets_ = false;
    place_ = Place::kTensor;
    return true;
  }
  bool end_object() override {
    if (place_ == Place::kTensor) {
      place_ = Place::kRoot;
      return FinishTensor();
    }
    place_ = place_ == Place::kMetadata ? Place::kRoot : Place::kEnd;
    return true;
  }
  bool start_array(std::size_t) override {
    if (place_ == Place::kTensor && key_ == "shape") {
      place_ = Place::kShape;
      return true;
    }
    if (place_ == Place::kTensor && key_ == "data_offsets") {
      place_ = Place::kOffsets;
      offsets_ = 0;
      return true;
    }
    return Unexpected("an array");
  }
  bool end_array() override {
    if (place_ == Place::kOffsets && offsets_ != 2) {
      return Fail("data_offsets of tensor " + Quote(current_.name) + " must be two numbers");
    }
    place_ = Place::kTensor;
    return true;
  }

  bool key(string_t& name) override {
    switch (place_) {
      case Place::kRoot:
        return RootKey(name);
      case Place::kMetadata:
        if (header_.metadata.count(name) != 0) {
          return Fail("the key " + Quote(name) + " of __metadata__ is repeated");
        }
        if (header_.metadata.size() == kMaxTensors) {
          return Fail(absl::StrFormat("__metadata__ has more than %d keys", kMaxTensors));
        }
        key_ = name;
        return true;
      default:
        return TensorKey(name);
    }
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Fail(absl::StrFormat("the header is not valid JSON at byte %d", position));
  }

  const std::string& error() const { return error_; }
  SafetensorsHeader TakeHeader() { return std::move(header_); }

 private:
  enum class Place { kStart, kRoot, kMetadata, kTensor, kShape, kOffsets, kEnd };

  bool Fail(const std::string& message) {
    if (error_.empty()) error_ = message;
    return false;
  }

  bool Unexpected(const std::string& what) {
    switch (place_) {
      case Place::kStart:
      case Place::kEnd:
        return Fail("the header is not a JSON object");
      case Place::kRoot:
        return Fail(Quote(key_) + " must be an object, not " + what);
      case Place::kMetadata:
        return Fail(absl::StrFormat("the key %s of __metadata__ must be a string, not %s",
                                    Quote(key_), what));
      default:
        return Fail(
            absl::StrFormat("%s of tensor %s is wrong: %s", key_, Quote(current_.name), what));
    }
  }

  bool RootKey(const std::string& name) {
    if (name == "__metadata__") {
      if (std::exchange(has_metadata_, true)) return Fail("__metadata__ is repeated");
    } else if (name.empty() || name.size() > kMaxNameBytes) {
      return Fail(absl::StrFormat("the tensor name %s has %d bytes, not 1 to %d", Quote(name),
                                  name.size(), kMaxNameBytes));
    } else if (std::any_of(name.begin(), name.end(),
                           [](unsigned char c) { return c < 0x20 || c == 0x7f; })) {
      return Fail("the tensor name " + Quote(name) + " has a control character");
    } else if (header_.tensors.size() == kMaxTensors) {
      return Fail(absl::StrFormat("there are more than %d tensors", kMaxTensors));
    }
    key_ = name;
    return true;
  }

  bool TensorKey(const std::string& name) {
    bool* seen = name == "dtype"          ? &has_dtype_
                 : name == "shape"        ? &has_shape_
                 : name == "data_offsets" ? &has_offsets_
                                          : nullptr;
    if (seen == nullptr) {
      return Fail("tensor " + Quote(current_.name) + " has the unknown field " + Quote(name));
    }
    if (std::exchange(*seen, true)) {
      return Fail(name + " of tensor " + Quote(current_.name) + " is repeated");
    }
    key_ = name;
    return true;
  }

  bool FinishTensor() {
    const char* missing = !has_dtype_     ? "dtype"
                          : !has_shape_   ? "shape"
                          : !has_offsets_ ? "data_offsets"
                                          : nullptr;
    if (missing != nullptr) return Fail("tensor " + Quote(current_.name) + " has no " + missing);
    int64_t bits = DTypeBits(current_.dtype);
    for (const int64_t size : current_.shape) {
      if (__builtin_mul_overflow(bits, size, &bits)) {
        return Fail(absl::StrFormat("tensor %s of shape %s is too large", Quote(current_.name),
                                    ShapeToString(current_.shape)));
      }
    }
    if (bits % 8 != 0) {
      return Fail(absl::StrFormat("tensor %s of %s %s does not fill whole bytes",
                                  Quote(current_.name), DTypeName(current_.dtype),
                                  ShapeToString(current_.shape)));
    }
    if (current_.end < current_.begin) {
      return Fail(absl::StrFormat("tensor %s ends (%d) before it begins (%d)", Quote(current_.name),
                                  current_.end, current_.begin));
    }
    if (current_.bytes() != bits / 8) {
      return Fail(absl::StrFormat("tensor %s of %s %s takes %d bytes, but its offsets span %d",
                                  Quote(current_.name), DTypeName(current_.dtype),
                                  ShapeToString(current_.shape), bits / 8, current_.bytes()));
    }
    header_.tensors.push_back(std::move(current_));
    return true;
  }

  SafetensorsHeader header_;
  Place place_ = Place::kStart;
  std::string key_;
  TensorInfo current_;
  int offsets_ = 0;
  bool has_metadata_ = false;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
  std::string error_;
};

absl::Status CheckUniqueNames(const std::vector<TensorInfo>& tensors) {
  // By hash first: names share long prefixes, which makes comparing them slow.
  std::vector<std::pair<size_t, const std::string*>> names;
  names.reserve(tensors.size());
  for (const TensorInfo& tensor : tensors) {
    names.emplace_back(std::hash<std::string>()(tensor.name), &tensor.name);
  }
  std::sort(names.begin(), names.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first < b.first : *a.second < *b.second;
  });
  const auto twice = std::adjacent_find(
      names.begin(), names.end(),
      [](const auto& a, const auto& b) { return a.first == b.first && *a.second == *b.second; });
  if (twice == names.end()) return absl::OkStatus();
  return absl::InvalidArgumentError("the tensor name " + Quote(*twice->second) + " is repeated");
}

// `tensors` are sorted by offset.
absl::Status CheckCoverage(const std::vector<TensorInfo>& tensors, int64_t data_bytes) {
  int64_t expected = 0;
  const TensorInfo* before = nullptr;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin < expected) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "tensor %s begins at byte %d and overlaps tensor %s, which ends at byte %d",
          Quote(tensor.name), tensor.begin, Quote(before->name), expected));
    }
    if (tensor.begin > expected) {
      return absl::InvalidArgumentError(
          absl::StrFormat("tensor %s begins at byte %d, leaving a hole of %d bytes before it",
                          Quote(tensor.name), tensor.begin, tensor.begin - expected));
    }
    if (tensor.end > data_bytes) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "tensor %s ends at byte %d of the data, but the file holds only %d: it is truncated",
          Quote(tensor.name), tensor.end, data_bytes));
    }
    expected = tensor.end;
    before = &tensor;
  }
  if (expected != data_bytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%d bytes follow the last tensor; the format allows none", data_bytes - expected));
  }
  return absl::OkStatus();
}

// What a file is that carries no plausible header, or nullptr. Only asked once the header's length
// is impossible or no JSON object follows: 0x80 0x02 is also an honest length of 640.
const char* ForeignFormat(const std::array<char, kLengthBytes>& start) {
  const auto begins = [&start](std::string_view magic) {
    return std::memcmp(start.data(), magic.data(), magic.size()) == 0;
  };
  if (begins("PK\x03\x04") || begins("PK\x05\x06") || begins("PK\x07\x08")) {
    return "a ZIP archive, probably a pickle checkpoint of PyTorch, which is never loaded: convert "
           "it to safetensors";
  }
  if (start[0] == '\x80' && start[1] >= '\x02' && start[1] <= '\x05') {
    return "a pickle file, which is never loaded: convert it to safetensors";
  }
  if (begins("GGUF")) return "a GGUF file: start from the original safetensors checkpoint";
  if (begins("version ")) {
    return "a Git LFS pointer instead of the weights: fetch them with `git lfs pull`";
  }
  return nullptr;
}

absl::StatusOr<SafetensorsHeader> ReadHeader(const ReadableFile& file) {
  if (file.size() < kLengthBytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%d bytes are too few for a safetensors file: it is truncated", file.size()));
  }
  std::array<char, kLengthBytes> start;
  PTQ_RETURN_IF_ERROR(file.ReadAt(0, start.data(), start.size()));
  uint64_t length = 0;
  for (int i = kLengthBytes - 1; i >= 0; --i) {
    length = (length << 8) | static_cast<unsigned char>(start[static_cast<size_t>(i)]);
  }
  const char* foreign = ForeignFormat(start);
  const uint64_t available = static_cast<uint64_t>(file.size() - kLengthBytes);
  if (length > static_cast<uint64_t>(kMaxHeaderBytes) || length > available || length < 2) {
    if (foreign != nullptr) return absl::InvalidArgumentError(foreign);
    if (length > static_cast<uint64_t>(kMaxHeaderBytes)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("not a safetensors file: a header of %d bytes, where at most %d are "
                          "allowed",
                          length, kMaxHeaderBytes));
    }
    return absl::InvalidArgumentError(absl::StrFormat(
        "a header of %d bytes does not fit the file's %d: it is truncated or not safetensors",
        length, file.size()));
  }
  std::string json(static_cast<size_t>(length), '\0');
  PTQ_RETURN_IF_ERROR(file.ReadAt(kLengthBytes, json.data(), json.size()));
  auto header = ParseSafetensorsHeader(json, static_cast<int64_t>(available - length));
  if (!header.ok()) {
    const size_t first = json.find_first_not_of(" \t\r\n");
    const bool object = first != std::string::npos && json[first] == '{';
    if (!object && foreign != nullptr) return absl::InvalidArgumentError(foreign);
    return header.status();
  }
  header->data_offset = kLengthBytes + static_cast<int64_t>(length);
  return header;
}

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json,
                                                         int64_t data_bytes) {
  if (static_cast<int64_t>(json.size()) > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "a header of %d bytes, where at most %d are allowed", json.size(), kMaxHeaderBytes));
  }
  // The JSON library would skip a byte order mark, and take a zero byte for the end of its input.
  const size_t first = json.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos || json[first] != '{') {
    return absl::InvalidArgumentError("the header is not a JSON object");
  }
  if (const size_t zero = json.find('\0'); zero != std::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the header is not valid JSON at byte %d", zero + 1));
  }
  HeaderHandler handler;
  if (!Json::sax_parse(json.begin(), json.end(), &handler)) {
    return absl::InvalidArgumentError(handler.error().empty() ? "the header is not valid JSON"
                                                              : handler.error());
  }
  SafetensorsHeader header = handler.TakeHeader();
  header.data_offset = kLengthBytes + static_cast<int64_t>(json.size());
  PTQ_RETURN_IF_ERROR(CheckUniqueNames(header.tensors));
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) {
              return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
            });
  PTQ_RETURN_IF_ERROR(CheckCoverage(header.tensors, data_bytes));
  return header;
}

absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const ReadableFile& file) {
  return ReadSafetensorsHeader(file, file.path());
}

absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const ReadableFile& file,
                                                        const std::string& display_name) {
  auto header = ReadHeader(file);
  if (!header.ok()) return Annotate(header.status(), display_name);
  return header;
}

}  // namespace ptq
