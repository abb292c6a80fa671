// The header of a safetensors file, checked by the reference reader's rules and stricter ones of
// our own (duplicate names, counts, ranks). Source: huggingface/safetensors,
// safetensors/src/tensor.rs.
#ifndef PTQ_FORMATS_HEADERS_SAFETENSORS_HEADER_H_
#define PTQ_FORMATS_HEADERS_SAFETENSORS_HEADER_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/file.h"
#include "formats/headers/dtype.h"

namespace ptq {

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  int64_t begin = 0;  // bytes from the start of the data buffer
  int64_t end = 0;

  int64_t bytes() const { return end - begin; }
};

struct SafetensorsHeader {
  int64_t data_offset = 0;          // where the data buffer begins in the file: 8 + header length
  std::vector<TensorInfo> tensors;  // by offset
  std::map<std::string, std::string> metadata;  // "__metadata__"
};

// Checks `json` (the header without its length) against a buffer of `data_bytes`. kInvalidArgument
// names the tensor and the rule: tensors sorted by offset start at 0, touch, and end at the file's
// last byte; sizes are shape times dtype without overflow; names are unique and at most 512 bytes;
// at most 1,000,000 tensors of rank at most 8. Stricter than the reference reader in these:
// repeated, empty, long or control-character names, ranks, counts, and fields of a tensor beyond
// its three.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json, int64_t data_bytes);

// Reads the length (at most 100,000,000) and the header of `file`, nothing else. Messages begin
// with the file's path. A ZIP, pickle or GGUF file under this name is recognised and said so.
absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const ReadableFile& file);
// The same with messages that begin with `display_name`: a server does not tell clients its paths.
absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const ReadableFile& file,
                                                        const std::string& display_name);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_SAFETENSORS_HEADER_H_
