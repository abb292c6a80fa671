// Typed access to the keys of a config.json. A key that is absent and one that is null are alike,
// as for transformers. Every error is kInvalidArgument and names the key.
#ifndef PTQ_FORMATS_HEADERS_CONFIG_JSON_H_
#define PTQ_FORMATS_HEADERS_CONFIG_JSON_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/json_fwd.h"

namespace ptq {

// nullptr for a key that is absent or null.
const Json* FindKey(const Json& object, const char* key);

absl::Status WrongType(const char* key, const char* expected);

// An integer in 1 .. 2^31 - 1. Without `otherwise` the key must be there; so below.
absl::StatusOr<int64_t> ReadSize(const Json& object, const char* key,
                                 std::optional<int64_t> otherwise = std::nullopt);
absl::StatusOr<double> ReadNumber(const Json& object, const char* key,
                                  std::optional<double> otherwise = std::nullopt);
absl::StatusOr<double> ReadPositiveNumber(const Json& object, const char* key,
                                          std::optional<double> otherwise = std::nullopt);
absl::StatusOr<bool> ReadFlag(const Json& object, const char* key, bool otherwise);
absl::StatusOr<std::string> ReadText(const Json& object, const char* key,
                                     const std::string& otherwise);
// An array of `count` positive numbers.
absl::StatusOr<std::vector<double>> ReadPositiveNumbers(const Json& object, const char* key,
                                                        int64_t count);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_CONFIG_JSON_H_
