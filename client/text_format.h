// Numbers, times and tables as people read them.
#ifndef PTQ_CLIENT_TEXT_FORMAT_H_
#define PTQ_CLIENT_TEXT_FORMAT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace ptq {

std::string FormatBytes(int64_t bytes);  // "512 B", "13.2 MB", "1.45 GB" (powers of 1000)
std::string FormatSeconds(absl::Duration duration);  // "0:07", "12:34", "1:02:03"
std::string FormatLoss(double loss);                 // three digits: "0.0123", "4.56e-05"
std::string FormatLocalTime(absl::Time time);        // "2026-11-22 17:40:27" where the user is

// Columns on a terminal that `text`, UTF-8 without wide or combining characters, takes.
int DisplayWidth(const std::string& text);
// At most `width` columns, the last one being "…" (or "~" without unicode) if anything was cut off.
std::string Ellipsize(const std::string& text, int width, bool unicode);
// `text` in lines of at most `width` columns, each after `indent` spaces. Line breaks in it are
// kept, and so are lines that begin with spaces.
std::string WrapText(const std::string& text, int width, int indent);

// Left-aligned columns, two spaces apart, no spaces at the ends of lines. The first row is the
// heading.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows);

}  // namespace ptq

#endif  // PTQ_CLIENT_TEXT_FORMAT_H_
