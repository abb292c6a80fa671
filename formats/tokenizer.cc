#include "formats/tokenizer.h"

#include <cstddef>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status_macros.h"

// formats/tokenizer_ffi/src/lib.rs.
extern "C" {
void* ptq_tokenizer_open(const uint8_t* data, size_t size, char** error);
bool ptq_tokenizer_encode(const void* tokenizer, const uint8_t* text, size_t size, uint32_t** ids,
                          size_t* count, char** error);
int64_t ptq_tokenizer_token_to_id(const void* tokenizer, const uint8_t* token, size_t size);
void ptq_tokenizer_free_ids(uint32_t* ids, size_t count);
void ptq_tokenizer_free_error(char* error);
void ptq_tokenizer_free(void* tokenizer);
}

namespace ptq {
namespace {

constexpr char kFileName[] = "tokenizer.json";

const uint8_t* Bytes(std::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

// Takes ownership of `error`.
std::string TakeError(char* error) {
  const std::string message = error == nullptr ? "unknown error" : error;
  ptq_tokenizer_free_error(error);
  return message;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Open(const std::string& folder) {
  const std::string path = JoinPath(folder, kFileName);
  PTQ_ASSIGN_OR_RETURN(const std::string json, ReadFile(path));
  char* error = nullptr;
  void* handle = json.empty() ? nullptr : ptq_tokenizer_open(Bytes(json), json.size(), &error);
  if (handle == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", json.empty() ? "the file is empty" : TakeError(error)));
  }
  return std::unique_ptr<Tokenizer>(new Tokenizer(handle));
}

Tokenizer::~Tokenizer() { ptq_tokenizer_free(handle_); }

absl::StatusOr<std::vector<int64_t>> Tokenizer::Encode(std::string_view text) const {
  uint32_t* ids = nullptr;
  size_t count = 0;
  char* error = nullptr;
  if (!ptq_tokenizer_encode(handle_, Bytes(text), text.size(), &ids, &count, &error)) {
    return absl::InvalidArgumentError(absl::StrCat(kFileName, ": ", TakeError(error)));
  }
  std::vector<int64_t> result(ids, ids + count);
  ptq_tokenizer_free_ids(ids, count);
  return result;
}

absl::StatusOr<int64_t> Tokenizer::TokenId(const std::string& token) const {
  const int64_t id = ptq_tokenizer_token_to_id(handle_, Bytes(token), token.size());
  if (id < 0) {
    return absl::NotFoundError(absl::StrCat(kFileName, ": no token \"", token, "\""));
  }
  return id;
}

}  // namespace ptq
