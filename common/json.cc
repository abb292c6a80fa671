#include "common/json.h"

#include <cmath>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace ptq {
namespace {

// Builds a Json while refusing what the plain parser lets through.
class StrictHandler final : public nlohmann::json_sax<Json> {
 public:
  explicit StrictHandler(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return Add(Json(nullptr)); }
  bool boolean(bool value) override { return Add(Json(value)); }
  bool number_integer(number_integer_t value) override { return Add(Json(value)); }
  bool number_unsigned(number_unsigned_t value) override { return Add(Json(value)); }
  bool number_float(number_float_t value, const string_t& text) override {
    if (text.find_first_of(".eE") == string_t::npos) {
      return Fail(absl::StrFormat("the integer %s does not fit in 64 bits", text.substr(0, 40)));
    }
    if (!std::isfinite(value)) return Fail("a number is out of range");
    return Add(Json(value));
  }
  bool string(string_t& value) override { return Add(Json(std::move(value))); }
  bool binary(binary_t&) override { return Fail("binary value"); }
  bool start_object(std::size_t) override { return Open(Json::object()); }
  bool start_array(std::size_t) override { return Open(Json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }
  bool key(string_t& name) override {
    if (!levels_.back().keys.insert(name).second) {
      return Fail(absl::StrFormat("the key \"%s\" is repeated", name.substr(0, 200)));
    }
    levels_.back().key = name;
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    std::string what = error.what();
    const size_t colon = what.find("syntax error");
    if (colon != std::string::npos) what = what.substr(colon);
    return Fail(absl::StrFormat("at byte %d: %s", position, what.substr(0, 300)));
  }

  const std::string& error() const { return error_; }
  Json TakeRoot() { return std::move(root_); }

 private:
  struct Level {
    Json value;
    std::string key;
    std::unordered_set<std::string> keys;
  };

  bool Fail(const std::string& message) {
    if (error_.empty()) error_ = message;
    return false;
  }
  bool Count() {
    if (++values_ > limits_.max_values) {
      return Fail(absl::StrFormat("more than %d values", limits_.max_values));
    }
    return true;
  }
  bool Add(Json value) {
    if (!Count()) return false;
    Place(std::move(value));
    return true;
  }
  void Place(Json value) {
    if (levels_.empty()) {
      root_ = std::move(value);
    } else if (levels_.back().value.is_array()) {
      levels_.back().value.push_back(std::move(value));
    } else {
      // Keys are known to be new: push_back avoids ordered_json's linear search.
      levels_.back().value.get_ref<Json::object_t&>().emplace_back(std::move(levels_.back().key),
                                                                   std::move(value));
    }
  }
  bool Open(Json value) {
    if (static_cast<int>(levels_.size()) >= limits_.max_depth) {
      return Fail(absl::StrFormat("nested deeper than %d levels", limits_.max_depth));
    }
    if (!Count()) return false;
    levels_.push_back({std::move(value), "", {}});
    return true;
  }
  bool Close() {
    Json value = std::move(levels_.back().value);
    levels_.pop_back();
    Place(std::move(value));
    return true;
  }

  JsonLimits limits_;
  int64_t values_ = 0;
  std::vector<Level> levels_;
  Json root_;
  std::string error_;
};

absl::Status FieldError(const std::string& field, const char* expected) {
  return absl::InvalidArgumentError(
      absl::StrFormat("\"%s\" is missing or is not %s", field, expected));
}

const Json* Find(const Json& object, const std::string& field) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(field);
  return it == object.end() ? nullptr : &*it;
}

}  // namespace

absl::StatusOr<Json> ParseJson(std::string_view text, const JsonLimits& limits) {
  if (static_cast<int64_t>(text.size()) > limits.max_bytes) {
    return absl::InvalidArgumentError(absl::StrFormat("JSON of %d bytes; at most %d are accepted",
                                                      text.size(), limits.max_bytes));
  }
  // nlohmann's lexer takes a zero byte for the end of its input and would ignore what follows.
  if (const size_t zero = text.find('\0'); zero != std::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrFormat("invalid JSON: zero byte at byte %d", zero + 1));
  }
  StrictHandler handler(limits);
  if (!Json::sax_parse(text.begin(), text.end(), &handler)) {
    return absl::InvalidArgumentError("invalid JSON: " +
                                      (handler.error().empty() ? "syntax error" : handler.error()));
  }
  return handler.TakeRoot();
}

std::string DumpJson(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string DumpJsonPretty(const Json& value) {
  return value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<int64_t> JsonInt(const Json& object, const std::string& field) {
  const Json* value = Find(object, field);
  if (value == nullptr || !value->is_number_integer() ||
      (value->is_number_unsigned() && value->get<uint64_t>() > INT64_MAX)) {
    return FieldError(field, "an integer");
  }
  return value->get<int64_t>();
}

absl::StatusOr<int64_t> JsonInt(const Json& object, const std::string& field, int64_t otherwise) {
  if (Find(object, field) == nullptr) return otherwise;
  return JsonInt(object, field);
}

absl::StatusOr<double> JsonDouble(const Json& object, const std::string& field) {
  const Json* value = Find(object, field);
  if (value == nullptr || !value->is_number()) return FieldError(field, "a number");
  return value->get<double>();
}

absl::StatusOr<double> JsonDouble(const Json& object, const std::string& field, double otherwise) {
  if (Find(object, field) == nullptr) return otherwise;
  return JsonDouble(object, field);
}

absl::StatusOr<bool> JsonBool(const Json& object, const std::string& field, bool otherwise) {
  const Json* value = Find(object, field);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean()) return FieldError(field, "true or false");
  return value->get<bool>();
}

absl::StatusOr<std::string> JsonString(const Json& object, const std::string& field) {
  const Json* value = Find(object, field);
  if (value == nullptr || !value->is_string()) return FieldError(field, "a string");
  return value->get<std::string>();
}

absl::StatusOr<std::string> JsonString(const Json& object, const std::string& field,
                                       const std::string& otherwise) {
  if (Find(object, field) == nullptr) return otherwise;
  return JsonString(object, field);
}

bool IsValidUtf8(std::string_view text) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  const size_t size = text.size();
  for (size_t i = 0; i < size;) {
    const unsigned char lead = bytes[i];
    if (lead < 0x80) {
      ++i;
      continue;
    }
    int extra;
    uint32_t code;
    if (lead >= 0xC2 && lead <= 0xDF) {
      extra = 1;
      code = lead & 0x1F;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
      extra = 2;
      code = lead & 0x0F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
      extra = 3;
      code = lead & 0x07;
    } else {
      return false;
    }
    if (i + static_cast<size_t>(extra) >= size) return false;
    for (int k = 1; k <= extra; ++k) {
      if ((bytes[i + k] & 0xC0) != 0x80) return false;
      code = (code << 6) | (bytes[i + k] & 0x3F);
    }
    // Overlong forms, surrogates, and beyond Unicode.
    if ((extra == 2 && code < 0x800) || (extra == 3 && code < 0x10000) || code > 0x10FFFF ||
        (code >= 0xD800 && code <= 0xDFFF)) {
      return false;
    }
    i += static_cast<size_t>(extra) + 1;
  }
  return true;
}

}  // namespace ptq
