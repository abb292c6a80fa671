#include "formats/headers/loader_rules/fused_sets.h"

#include <array>
#include <cctype>

#include "absl/strings/match.h"

namespace ptq {
namespace {

struct Mapping {
  const char* member;
  const char* fused;
  const char* members;
};

constexpr std::array kMappings = {
    Mapping{"q_proj", "qkv_proj", "q_proj, k_proj and v_proj"},
    Mapping{"k_proj", "qkv_proj", "q_proj, k_proj and v_proj"},
    Mapping{"v_proj", "qkv_proj", "q_proj, k_proj and v_proj"},
    Mapping{"gate_proj", "gate_up_proj", "gate_proj and up_proj"},
    Mapping{"up_proj", "gate_up_proj", "gate_proj and up_proj"},
    Mapping{"q_a_proj", "fused_qkv_a_proj", "q_a_proj and kv_a_proj_with_mqa"},
    Mapping{"kv_a_proj_with_mqa", "fused_qkv_a_proj", "q_a_proj and kv_a_proj_with_mqa"},
};

constexpr char kExperts[] = ".experts.";

}  // namespace

std::optional<FusedSet> FusedSetOf(const std::string& module) {
  // model.layers.0.mlp.experts.7.gate_proj; Mixtral: ....block_sparse_moe.experts.7.w1.
  if (const size_t at = module.find(kExperts); at != std::string::npos) {
    const size_t number = at + sizeof(kExperts) - 1;
    if (number < module.size() && std::isdigit(static_cast<unsigned char>(module[number]))) {
      return FusedSet{module.substr(0, number - 1), "the experts of a block", false};
    }
  }
  const size_t dot = module.rfind('.');
  if (dot == std::string::npos) return std::nullopt;
  for (const Mapping& mapping : kMappings) {
    if (module.substr(dot + 1) != mapping.member) continue;
    return FusedSet{module.substr(0, dot + 1) + mapping.fused, mapping.members, true};
  }
  return std::nullopt;
}

bool IsOutsideOfBlocks(const std::string& module) {
  for (size_t dot = module.find('.'); dot != std::string::npos; dot = module.find('.', dot + 1)) {
    if (dot + 1 < module.size() && std::isdigit(static_cast<unsigned char>(module[dot + 1]))) {
      return false;
    }
  }
  return true;
}

}  // namespace ptq
