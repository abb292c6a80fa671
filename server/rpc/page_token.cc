#include "server/rpc/page_token.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/errors/status_details.h"

namespace ptq {
namespace {

constexpr size_t kSignatureBytes = 16;
constexpr size_t kMaxTokenBytes = 4096;

absl::Status BadToken() {
  return InvalidField("page_token",
                      "is not one that this list gave: parent and filter must be those of the "
                      "first page");
}

}  // namespace

std::string PageTokens::Sign(const std::string& method, const v1::ListRequest& request,
                             const std::string& cursor) const {
  std::string text;
  for (const std::string& part : {method, request.parent(), request.filter(), cursor}) {
    absl::StrAppend(&text, part.size(), ":", part);
  }
  unsigned char mac[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  ::HMAC(::EVP_sha256(), secret_.data(), static_cast<int>(secret_.size()),
         reinterpret_cast<const unsigned char*>(text.data()), text.size(), mac, &size);
  return std::string(reinterpret_cast<const char*>(mac), kSignatureBytes);
}

std::string PageTokens::Encode(const std::string& method, const v1::ListRequest& request,
                               const std::string& cursor) const {
  return absl::WebSafeBase64Escape(Sign(method, request, cursor) + cursor);
}

absl::StatusOr<std::optional<std::string>> PageTokens::Decode(
    const std::string& method, const v1::ListRequest& request) const {
  if (request.page_token().empty()) return std::nullopt;
  std::string bytes;
  if (request.page_token().size() > kMaxTokenBytes ||
      !absl::WebSafeBase64Unescape(request.page_token(), &bytes) ||
      bytes.size() < kSignatureBytes) {
    return BadToken();
  }
  const std::string cursor = bytes.substr(kSignatureBytes);
  const std::string expected = Sign(method, request, cursor);
  if (::CRYPTO_memcmp(expected.data(), bytes.data(), kSignatureBytes) != 0) return BadToken();
  return cursor;
}

absl::StatusOr<int> PageSize(const v1::ListRequest& request) {
  if (request.page_size() < 0) return InvalidField("page_size", "is negative");
  if (request.page_size() == 0) return kDefaultPageSize;
  return std::min(request.page_size(), kMaxPageSize);
}

std::string CursorText(const ListCursor& cursor) {
  return absl::StrCat(absl::ToUnixMicros(cursor.create_time), "/", cursor.id);
}

absl::StatusOr<ListCursor> ParseCursor(const std::string& text) {
  const size_t slash = text.find('/');
  int64_t micros = 0;
  if (slash == std::string::npos || !absl::SimpleAtoi(text.substr(0, slash), &micros)) {
    return BadToken();
  }
  return ListCursor{absl::FromUnixMicros(micros), text.substr(slash + 1)};
}

}  // namespace ptq
