#include "worker/spec/k_quant_mixes.h"

#include <functional>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace ptq {
namespace {

// By the names of all families.
constexpr char kValue[] = "v_proj";
constexpr char kFused[] = "qkv_proj|query_key_value|c_attn";
constexpr char kAttentionOutput[] = "o_proj|out_proj|attn\\.c_proj|attention\\.dense";
constexpr char kMlpOutput[] = "down_proj|w2|mlp\\.c_proj|dense_4h_to_h|fc2";

// Adds the rule for `layers` in the blocks that `takes` names, if there are any.
class Mix {
 public:
  explicit Mix(int64_t block_count) : block_count_(block_count) {}

  void Add(const char* layers, const char* type, const std::function<bool(int64_t)>& takes) {
    std::vector<int64_t> blocks;
    for (int64_t block = 0; block < block_count_; ++block) {
      if (takes(block)) blocks.push_back(block);
    }
    if (blocks.empty()) return;
    const bool all = static_cast<int64_t>(blocks.size()) == block_count_;
    // The block's number is the first one in a name; an expert's comes after it.
    rules_.push_back(absl::StrFormat("[^0-9]*\\.(%s)\\.(.*\\.)?(%s):scheme=%s",
                                     all ? "\\d+" : absl::StrJoin(blocks, "|"), layers, type));
  }
  void Add(const char* layers, const char* type) {
    Add(layers, type, [](int64_t) { return true; });
  }

  std::vector<std::string> Take() { return std::move(rules_); }

 private:
  const int64_t block_count_;
  std::vector<std::string> rules_;
};

}  // namespace

bool UsesMoreBits(int64_t block, int64_t block_count) {
  const int64_t eighth = block_count / 8;
  return block < eighth || block >= 7 * block_count / 8 || (block - eighth) % 3 == 2;
}

std::vector<std::string> KQuantMixRules(const std::string& name, int64_t block_count) {
  Mix mix(block_count);
  const auto first = [](int64_t count) { return [count](int64_t block) { return block < count; }; };
  const auto more = [block_count](int64_t block) { return UsesMoreBits(block, block_count); };
  if (name == "Q2_K") {
    mix.Add(kValue, "Q4_K");
    mix.Add(kAttentionOutput, "Q3_K");
    mix.Add(kMlpOutput, "Q3_K");
  } else if (name == "Q3_K_M") {
    mix.Add(kValue, "Q5_K", first(2));
    mix.Add(kValue, "Q4_K");
    mix.Add(kMlpOutput, "Q5_K", first(block_count / 16));
    mix.Add(kMlpOutput, "Q4_K");
    mix.Add(kAttentionOutput, "Q4_K");
    mix.Add(kFused, "Q4_K");
  } else if (name == "Q4_K_S") {
    mix.Add(kValue, "Q5_K", first(4));
    mix.Add(kMlpOutput, "Q5_K", first(block_count / 8));
  } else if (name == "Q4_K_M" || name == "Q5_K_M") {
    mix.Add(kValue, "Q6_K", more);
    mix.Add(kMlpOutput, "Q6_K", more);
    mix.Add(kFused, name == "Q4_K_M" ? "Q5_K" : "Q6_K");
  }
  return mix.Take();
}

}  // namespace ptq
