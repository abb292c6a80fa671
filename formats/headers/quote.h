// Names from outside, made safe for one line of an error message.
#ifndef PTQ_FORMATS_HEADERS_QUOTE_H_
#define PTQ_FORMATS_HEADERS_QUOTE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ptq {

// `text` in double quotes: control characters and invalid UTF-8 as \x escapes, cut to some 200
// bytes. The result is always well-formed UTF-8, because messages travel in protobuf strings.
std::string Quote(std::string_view text);

// "[256, 768]".
std::string ShapeToString(const std::vector<int64_t>& shape);

// "a, b, c", or "a, b and 7 more" where there are more than `most`.
std::string ListSome(const std::vector<std::string>& items, size_t most);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_QUOTE_H_
