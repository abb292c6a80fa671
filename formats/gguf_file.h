// GGUF version 3, the file of llama.cpp: key-value metadata and tensors, written as a stream and
// read back (ggml/docs/gguf.md).
#ifndef PTQ_FORMATS_GGUF_FILE_H_
#define PTQ_FORMATS_GGUF_FILE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file.h"
#include "formats/headers/gguf_types.h"

namespace ptq {

// The kinds of values that we write, in the order of their use. What is read of other kinds becomes
// one of them where it fits; an integer beyond 32 bits an int64_t.
using GgufValue =
    std::variant<bool, uint32_t, float, std::string, std::vector<bool>, std::vector<int32_t>,
                 std::vector<float>, std::vector<std::string>, int64_t>;
// In the order of the file, each key once.
using GgufMetadata = std::vector<std::pair<std::string, GgufValue>>;

struct GgufTensorInfo {
  std::string name;  // at most 63 bytes
  GgufType type = GgufType::kF32;
  std::vector<int64_t> shape;  // slowest first, as a checkpoint's: [N, K]; the file has it reversed
  int64_t offset = 0;          // from the start of the data; set by writer and reader

  int64_t bytes() const;
};

// Takes a tensor's next bytes.
using GgufSink = std::function<absl::Status(const void* data, size_t size)>;

// A tensor whose bytes are made when they are written.
struct GgufTensorSource {
  GgufTensorInfo info;
  std::function<absl::Status(const GgufSink& sink)> write;  // called once
};

// Header and tensor infos first, then tensor after tensor, each at a multiple of 32 bytes. No
// timestamps: equal input gives equal bytes. `check(temporary path)` runs on the whole file before
// it gets its name. Returns the file's SHA-256. An error of `write` is returned as it is;
// kInternal if it gives another number of bytes than announced.
absl::StatusOr<std::string> WriteGguf(
    const std::string& path, const GgufMetadata& metadata, std::vector<GgufTensorSource> tensors,
    const std::function<absl::Status(const std::string&)>& check = {});

// An open file. Concurrent reads are safe.
class GgufFile {
 public:
  // kInvalidArgument naming the file and what is wrong: no GGUF of version 2 or 3, a kind of value
  // that does not exist, arrays of arrays, a name twice, tensors outside of the file.
  // kFailedPrecondition naming the tensor for a type that is not one of GgufType.
  static absl::StatusOr<GgufFile> Open(const std::string& path);

  const GgufMetadata& metadata() const { return metadata_; }
  const std::vector<GgufTensorInfo>& tensors() const { return tensors_; }
  // nullptr if there is none.
  const GgufTensorInfo* Find(const std::string& name) const;
  // Bytes [offset, offset + size) of a tensor.
  absl::Status Read(const GgufTensorInfo& tensor, int64_t offset, int64_t size, void* out) const;

 private:
  explicit GgufFile(ReadableFile file) : file_(std::move(file)) {}

  ReadableFile file_;
  GgufMetadata metadata_;
  std::vector<GgufTensorInfo> tensors_;
  std::map<std::string, size_t> by_name_;
  int64_t data_offset_ = 0;
};

}  // namespace ptq

#endif  // PTQ_FORMATS_GGUF_FILE_H_
