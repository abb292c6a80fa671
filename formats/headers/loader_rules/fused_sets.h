// Linear layers that inference engines load as one: q, k and v; gate and up; the experts of a
// block.
#ifndef PTQ_FORMATS_HEADERS_LOADER_RULES_FUSED_SETS_H_
#define PTQ_FORMATS_HEADERS_LOADER_RULES_FUSED_SETS_H_

#include <optional>
#include <string>

namespace ptq {

// vLLM's packed_modules_mapping and FusedMoE, SGLang's the same (vllm/model_executor/models/
// {llama,mixtral,qwen2_moe,deepseek_v2}.py). For a module that is loaded alone: nullopt.
struct FusedSet {
  std::string module;   // the engine's name for it: "model.layers.0.self_attn.qkv_proj"
  std::string members;  // for messages: "q_proj, k_proj and v_proj"
  // Whether the members' rows become one matrix. Experts are stacked instead: each keeps its shape.
  bool joins_rows = true;
};
std::optional<FusedSet> FusedSetOf(const std::string& module);

// Whether a quantized module is the head or the embedding, going by its name: blocks have numbers.
bool IsOutsideOfBlocks(const std::string& module);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_LOADER_RULES_FUSED_SETS_H_
