// JSON from outside, read strictly, and JSON for outside, written stably.
//
// nlohmann::json::parse keeps the last of two equal keys and turns a 20-digit integer into a
// double, both silently: hostile input goes through the SAX interface here, which refuses both.
#ifndef PTQ_COMMON_JSON_H_
#define PTQ_COMMON_JSON_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/json_fwd.h"

namespace ptq {

struct JsonLimits {
  int max_depth = 32;
  int64_t max_bytes = 64 << 20;
  int64_t max_values = 8'000'000;
};

// Parses one document. kInvalidArgument with the byte offset for anything that is not strict JSON
// in UTF-8: repeated keys, too much depth, integers outside int64/uint64, trailing bytes,
// non-finite numbers. Never throws.
absl::StatusOr<Json> ParseJson(std::string_view text, const JsonLimits& limits = {});

// Compact, keys in insertion order, invalid UTF-8 replaced by U+FFFD (never throws).
std::string DumpJson(const Json& value);
// The same with two-space indentation and a final newline, for files that people open.
std::string DumpJsonPretty(const Json& value);

// Typed access to a field of an object. Each names the field in its kInvalidArgument; a missing
// field is an error too, unless a default is given.
absl::StatusOr<int64_t> JsonInt(const Json& object, const std::string& field);
absl::StatusOr<int64_t> JsonInt(const Json& object, const std::string& field, int64_t otherwise);
absl::StatusOr<double> JsonDouble(const Json& object, const std::string& field);
absl::StatusOr<double> JsonDouble(const Json& object, const std::string& field, double otherwise);
absl::StatusOr<bool> JsonBool(const Json& object, const std::string& field, bool otherwise);
absl::StatusOr<std::string> JsonString(const Json& object, const std::string& field);
absl::StatusOr<std::string> JsonString(const Json& object, const std::string& field,
                                       const std::string& otherwise);

// True if `text` is well-formed UTF-8.
bool IsValidUtf8(std::string_view text);

}  // namespace ptq

#endif  // PTQ_COMMON_JSON_H_
