#include "formats/headers/quote.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/json.h"

namespace ptq {

std::string Quote(std::string_view text) {
  constexpr size_t kMost = 200;
  std::string shown(text.substr(0, kMost));
  if (text.size() > kMost) {
    // Not inside a character: step back over continuation bytes.
    size_t end = kMost;
    while (end > kMost - 4 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
    shown.resize(end);
  }
  shown = IsValidUtf8(shown) ? absl::Utf8SafeCHexEscape(shown) : absl::CHexEscape(shown);
  return "\"" + shown + (text.size() > kMost ? "...\"" : "\"");
}

std::string ShapeToString(const std::vector<int64_t>& shape) {
  return "[" + absl::StrJoin(shape, ", ") + "]";
}

std::string ListSome(const std::vector<std::string>& items, size_t most) {
  if (items.size() <= most) return absl::StrJoin(items, ", ");
  return absl::StrJoin(items.begin(), items.begin() + static_cast<std::ptrdiff_t>(most), ", ") +
         absl::StrFormat(" and %d more", items.size() - most);
}

}  // namespace ptq
