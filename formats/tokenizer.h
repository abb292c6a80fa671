// tokenizer.json to token ids, by the Hugging Face `tokenizers` crate behind a small C ABI
// (formats/tokenizer_ffi). Hostile input: opened in the worker only.
#ifndef PTQ_FORMATS_TOKENIZER_H_
#define PTQ_FORMATS_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace ptq {

// Thread-compatible.
class Tokenizer {
 public:
  // kNotFound if there is no tokenizer.json in `folder`, kInvalidArgument if it can't be used.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Open(const std::string& folder);
  ~Tokenizer();

  // Ids of `text` (UTF-8) without special tokens, no truncation, no padding.
  absl::StatusOr<std::vector<int64_t>> Encode(std::string_view text) const;
  // Id of a token by its content; kNotFound.
  absl::StatusOr<int64_t> TokenId(const std::string& token) const;

 private:
  explicit Tokenizer(void* handle) : handle_(handle) {}
  void* handle_;
};

}  // namespace ptq

#endif  // PTQ_FORMATS_TOKENIZER_H_
