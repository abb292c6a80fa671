#include "formats/headers/weight_map.h"

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/json.h"
#include "common/status_macros.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

constexpr size_t kMaxTensors = 1'000'000;
constexpr size_t kMaxTopLevelKeys = 1000;
constexpr int kMaxDepth = 8;

// Collects the weight map from the parser's events: a document tree of a large index costs several
// times the parsing. All else in the file is skipped.
class IndexHandler final : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return Value("null"); }
  bool boolean(bool) override { return Value("a boolean"); }
  bool number_integer(number_integer_t) override { return Value("a number"); }
  bool number_unsigned(number_unsigned_t) override { return Value("a number"); }
  bool number_float(number_float_t, const string_t&) override { return Value("a number"); }
  bool binary(binary_t&) override { return Value("binary data"); }
  bool string(string_t& value) override {
    if (!InWeightMap()) return Value("a string");
    if (weight_map_.size() == kMaxTensors) {
      return Fail(absl::StrFormat("weight_map names more than %d tensors", kMaxTensors));
    }
    weight_map_.emplace_back(std::move(key_), std::move(value));
    return true;
  }

  bool start_object(std::size_t) override {
    if (depth_ == 1 && top_level_key_ == "weight_map") in_weight_map_ = true;
    return Open("an object");
  }
  bool end_object() override {
    if (--depth_ == 1) in_weight_map_ = false;
    return true;
  }
  bool start_array(std::size_t) override { return Open("an array"); }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool key(string_t& name) override {
    if (depth_ != 1) {
      if (InWeightMap()) key_ = std::move(name);
      return true;
    }
    if (!top_level_keys_.insert(name).second)
      return Fail("the key " + Quote(name) + " is repeated");
    if (top_level_keys_.size() > kMaxTopLevelKeys) return Fail("too many keys");
    top_level_key_ = name;
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Fail(absl::StrFormat("not valid JSON at byte %d", position));
  }

  const std::string& error() const { return error_; }
  WeightMap TakeWeightMap() { return std::move(weight_map_); }

 private:
  bool InWeightMap() const { return in_weight_map_ && depth_ == 2; }

  bool Fail(const std::string& message) {
    if (error_.empty()) error_ = message;
    return false;
  }
  // Anything but a string where the weight map, one of its files, or the root is due is wrong.
  bool Value(const char* what) {
    if (depth_ == 0) return Fail("not a JSON object");
    if (depth_ == 1 && top_level_key_ == "weight_map") {
      return Fail(absl::StrFormat("weight_map must be an object, not %s", what));
    }
    if (InWeightMap()) {
      return Fail(absl::StrFormat("weight_map: the file of tensor %s must be a string, not %s",
                                  Quote(key_), what));
    }
    return true;
  }
  bool Open(const char* what) {
    const bool expected =
        what == std::string_view("an object") && (depth_ == 0 || (depth_ == 1 && in_weight_map_));
    if (!expected && !Value(what)) return false;
    if (++depth_ > kMaxDepth)
      return Fail(absl::StrFormat("nested deeper than %d levels", kMaxDepth));
    return true;
  }

  int depth_ = 0;
  bool in_weight_map_ = false;
  std::set<std::string> top_level_keys_;
  std::string top_level_key_;
  std::string key_;
  WeightMap weight_map_;
  std::string error_;
};

absl::Status CheckFileName(const std::string& tensor, const std::string& file) {
  if (!IsSafeRelativePath(file) || file.find('/') != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrFormat("weight_map: %s, the file of tensor %s, is not a plain file name",
                        Quote(file), Quote(tensor)));
  }
  if (!absl::EndsWith(file, ".safetensors")) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "weight_map: %s, the file of tensor %s, is not a .safetensors file%s", Quote(file),
        Quote(tensor), IsPickleName(file) ? "; pickle weights are never loaded" : ""));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<WeightMap> ParseWeightMap(std::string_view json) {
  // The JSON library takes a zero byte for the end of its input.
  if (const size_t zero = json.find('\0'); zero != std::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrFormat("not valid JSON at byte %d", zero + 1));
  }
  IndexHandler handler;
  if (!Json::sax_parse(json.begin(), json.end(), &handler)) {
    return absl::InvalidArgumentError(handler.error().empty() ? "not valid JSON" : handler.error());
  }
  WeightMap weight_map = handler.TakeWeightMap();
  if (weight_map.empty()) return absl::InvalidArgumentError("weight_map is missing or empty");
  std::sort(weight_map.begin(), weight_map.end());
  for (size_t i = 0; i < weight_map.size(); ++i) {
    const auto& [tensor, file] = weight_map[i];
    if (i > 0 && weight_map[i - 1].first == tensor) {
      return absl::InvalidArgumentError("weight_map: tensor " + Quote(tensor) + " is repeated");
    }
    PTQ_RETURN_IF_ERROR(CheckFileName(tensor, file));
  }
  return weight_map;
}

bool IsPickleName(const std::string& name) {
  for (const char* suffix : {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}) {
    if (absl::EndsWithIgnoreCase(name, suffix)) return true;
  }
  return false;
}

}  // namespace ptq
