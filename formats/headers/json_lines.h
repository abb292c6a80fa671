// JSON Lines, document by document: one object with a string "text" a line. Blank lines don't
// count.
#ifndef PTQ_FORMATS_HEADERS_JSON_LINES_H_
#define PTQ_FORMATS_HEADERS_JSON_LINES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "common/file.h"

namespace ptq {

// Reads a .jsonl file in pieces: memory is one line's. Single reader.
class JsonLinesReader {
 public:
  // What ReadableFile::Open reports.
  static absl::StatusOr<JsonLinesReader> Open(const std::string& path);

  // The next document's text, or nullopt after the last. kInvalidArgument beginning with the
  // 1-based line number ("line 3: ..."): not UTF-8, not one JSON object, no string "text", above 64
  // MiB.
  absl::StatusOr<std::optional<std::string>> Next();
  // Of the line that Next returned or refused; 0 before the first.
  int64_t line_number() const { return line_number_; }

 private:
  explicit JsonLinesReader(ReadableFile file) : file_(std::move(file)) {}
  // Puts the next line, without its newline, into `line`; false at the end of the file.
  absl::StatusOr<bool> NextLine(std::string* line);

  ReadableFile file_;
  std::string buffer_;  // bytes read and not yet returned, from `position_` on
  size_t position_ = 0;
  int64_t file_offset_ = 0;  // of the next byte to read
  int64_t line_number_ = 0;
};

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_JSON_LINES_H_
