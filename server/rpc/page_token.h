// Page tokens: where a list goes on, unreadable and unforgeable for clients.
#ifndef PTQ_SERVER_RPC_PAGE_TOKEN_H_
#define PTQ_SERVER_RPC_PAGE_TOKEN_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "ptq/v1/resources.pb.h"
#include "server/store/job_store.h"

namespace ptq {

inline constexpr int kDefaultPageSize = 50;
inline constexpr int kMaxPageSize = 1000;

// Immutable. A token holds a cursor and an HMAC over it, the method, parent and filter: it is good
// for this server and this list alone.
class PageTokens {
 public:
  explicit PageTokens(std::string secret) : secret_(std::move(secret)) {}

  std::string Encode(const std::string& method, const v1::ListRequest& request,
                     const std::string& cursor) const;
  // The cursor; nothing for the first page. kInvalidArgument with the field "page_token".
  absl::StatusOr<std::optional<std::string>> Decode(const std::string& method,
                                                    const v1::ListRequest& request) const;

 private:
  std::string Sign(const std::string& method, const v1::ListRequest& request,
                   const std::string& cursor) const;

  const std::string secret_;
};

// 0 is the default, more than kMaxPageSize is kMaxPageSize; negative is kInvalidArgument.
absl::StatusOr<int> PageSize(const v1::ListRequest& request);

// ListCursor as text, and back. kInvalidArgument if it is none.
std::string CursorText(const ListCursor& cursor);
absl::StatusOr<ListCursor> ParseCursor(const std::string& text);

}  // namespace ptq

#endif  // PTQ_SERVER_RPC_PAGE_TOKEN_H_
