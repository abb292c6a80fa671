// The header of a GGUF file: keys and tensor infos (ggml/docs/gguf.md, ggml/src/gguf.cpp).
#ifndef PTQ_FORMATS_HEADERS_LOADER_RULES_GGUF_HEADER_H_
#define PTQ_FORMATS_HEADERS_LOADER_RULES_GGUF_HEADER_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/file.h"
#include "formats/headers/loader_rules/findings.h"

namespace ptq {

// Of a ggml type: elements of a block and its bytes.
struct GgmlType {
  uint32_t id;
  const char* name;
  int64_t block_elements;
  int64_t block_bytes;
};
// nullptr for a number that names no type.
const GgmlType* FindGgmlType(uint32_t id);

struct GgufTensor {
  std::string name;
  std::vector<int64_t> shape;  // row-major: the reverse of the file's order
  uint32_t type = 0;
  uint64_t offset = 0;  // within the data section
};

// A value: numbers and booleans as a double, strings as they are, of an array the length.
struct GgufEntry {
  enum class Kind { kNumber, kText, kArray };
  Kind kind = Kind::kNumber;
  double number = 0;
  std::string text;
  uint64_t length = 0;
};

struct GgufHeader {
  uint32_t version = 0;
  int64_t alignment = 32;
  int64_t data_offset = 0;
  int64_t file_size = 0;
  std::map<std::string, GgufEntry> values;
  std::vector<GgufTensor> tensors;

  const GgufTensor* Find(const std::string& name) const;
  std::optional<int64_t> Integer(const std::string& key) const;
  std::string Text(const std::string& key) const;  // "" if there is none
};

// kInvalidArgument naming key, tensor or byte: another magic, a version that is not 2 or 3, a count
// or length beyond the file, a repeated key, a value or tensor of an unknown kind, an alignment
// that is no power of two.
absl::StatusOr<GgufHeader> ReadGgufHeader(const ReadableFile& file);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_LOADER_RULES_GGUF_HEADER_H_
