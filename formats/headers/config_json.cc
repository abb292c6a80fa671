#include "formats/headers/config_json.h"

#include "absl/strings/str_format.h"
#include "common/json.h"
#include "common/status_macros.h"

namespace ptq {
namespace {

constexpr int64_t kSizeLimit = int64_t{1} << 31;

absl::Status Missing(const char* key) {
  return absl::InvalidArgumentError(absl::StrFormat("%s is missing", key));
}

}  // namespace

const Json* FindKey(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

absl::Status WrongType(const char* key, const char* expected) {
  return absl::InvalidArgumentError(absl::StrFormat("%s must be %s", key, expected));
}

absl::StatusOr<int64_t> ReadSize(const Json& object, const char* key,
                                 std::optional<int64_t> otherwise) {
  const Json* value = FindKey(object, key);
  if (value == nullptr) {
    if (otherwise.has_value()) return *otherwise;
    return Missing(key);
  }
  if (!value->is_number_integer()) return WrongType(key, "an integer");
  const bool fits =
      value->is_number_unsigned() && value->get<uint64_t>() < static_cast<uint64_t>(kSizeLimit);
  if (!fits || value->get<int64_t>() == 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is %s, not in 1..%d", key, DumpJson(*value), kSizeLimit - 1));
  }
  return value->get<int64_t>();
}

absl::StatusOr<double> ReadNumber(const Json& object, const char* key,
                                  std::optional<double> otherwise) {
  const Json* value = FindKey(object, key);
  if (value == nullptr) {
    if (otherwise.has_value()) return *otherwise;
    return Missing(key);
  }
  if (!value->is_number()) return WrongType(key, "a number");
  return value->get<double>();
}

absl::StatusOr<double> ReadPositiveNumber(const Json& object, const char* key,
                                          std::optional<double> otherwise) {
  PTQ_ASSIGN_OR_RETURN(const double value, ReadNumber(object, key, otherwise));
  if (!(value > 0)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is %g, but must be positive", key, value));
  }
  return value;
}

absl::StatusOr<bool> ReadFlag(const Json& object, const char* key, bool otherwise) {
  const Json* value = FindKey(object, key);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean()) return WrongType(key, "true or false");
  return value->get<bool>();
}

absl::StatusOr<std::string> ReadText(const Json& object, const char* key,
                                     const std::string& otherwise) {
  const Json* value = FindKey(object, key);
  if (value == nullptr) return otherwise;
  if (!value->is_string()) return WrongType(key, "a string");
  return value->get<std::string>();
}

absl::StatusOr<std::vector<double>> ReadPositiveNumbers(const Json& object, const char* key,
                                                        int64_t count) {
  const Json* value = FindKey(object, key);
  if (value == nullptr) return Missing(key);
  std::vector<double> numbers;
  if (value->is_array()) {
    for (const Json& number : *value) {
      if (number.is_number() && number.get<double>() > 0) numbers.push_back(number.get<double>());
    }
  }
  if (!value->is_array() || numbers.size() != value->size() ||
      static_cast<int64_t>(numbers.size()) != count) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s must be an array of %d positive numbers", key, count));
  }
  return numbers;
}

}  // namespace ptq
