// The families that are supported, a line each.
#include "formats/headers/family.h"

#define PTQ_FAMILIES(F) \
  F(Llama)              \
  F(Mistral)            \
  F(Qwen2)              \
  F(Qwen3)              \
  F(Gemma2)             \
  F(Gemma3)             \
  F(Phi3)               \
  F(Olmo2)              \
  F(Granite)            \
  F(SeedOss)            \
  F(Starcoder2)         \
  F(GptNeox)            \
  F(Opt)                \
  F(Gpt2)               \
  F(Mixtral)            \
  F(Qwen3Moe)           \
  F(Qwen2Moe)           \
  F(DeepseekV2)         \
  F(DeepseekV3)

namespace ptq {
namespace families {

#define PTQ_DECLARE(NAME) Family NAME();  // in families/<name>.cc
PTQ_FAMILIES(PTQ_DECLARE)
#undef PTQ_DECLARE

}  // namespace families

const std::vector<Family>& Families() {
#define PTQ_CALL(NAME) families::NAME(),
  static const auto* const families = new std::vector<Family>{PTQ_FAMILIES(PTQ_CALL)};
#undef PTQ_CALL
  return *families;
}

const Family* FindFamily(const std::string& model_type) {
  for (const Family& family : Families()) {
    if (model_type == family.model_type) return &family;
  }
  return nullptr;
}

}  // namespace ptq
