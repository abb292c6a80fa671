// A file that is hashed while it is written.
#ifndef PTQ_FORMATS_HASHING_WRITER_H_
#define PTQ_FORMATS_HASHING_WRITER_H_

#include <cstddef>
#include <map>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "common/file.h"
#include "common/sha256.h"

namespace ptq {

// SHA-256 by a file's path in its folder, of files that were hashed while they were written.
using FileDigests = std::map<std::string, std::string>;

// Appends to a file and to its digest. Single writer.
class HashingWriter {
 public:
  explicit HashingWriter(AtomicFileWriter file) : file_(std::move(file)) {}

  // Large pieces are hashed beside their way to the file.
  absl::Status Append(const void* data, size_t size);
  AtomicFileWriter& file() { return file_; }
  // Of all that was appended.
  std::string Digest() { return sha256_.FinishHex(); }

 private:
  AtomicFileWriter file_;
  Sha256 sha256_;
};

}  // namespace ptq

#endif  // PTQ_FORMATS_HASHING_WRITER_H_
