#include "formats/gguf_names.h"

#include <numeric>

#include "absl/strings/str_cat.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

const std::vector<GgufFamily>& Families() {
  using enum Activation;
  static const auto* const families = new std::vector<GgufFamily>{
      {.model_type = "gemma2",
       .architecture = "gemma2",
       .activation = kGeluTanh,
       .has_windows = true,
       .has_soft_caps = true},
      {.model_type = "gemma3_text",
       .architecture = "gemma3",
       .activation = kGeluTanh,
       .has_windows = true},
      {.model_type = "gpt2",
       .architecture = "gpt2",
       .activation = kGeluTanh,
       .takes_biases = true,
       .needs_biases = true},
      {.model_type = "gpt_neox",
       .architecture = "gptneox",
       .activation = kGeluTanh,
       .takes_biases = true,
       .needs_biases = true,
       .needs_head = true},
      {.model_type = "granite",
       .architecture = "granite",
       .pairs_rotary = true,
       .takes_biases = true,
       .has_multipliers = true},
      {.model_type = "llama", .architecture = "llama", .pairs_rotary = true, .takes_biases = true},
      {.model_type = "mistral", .architecture = "llama", .pairs_rotary = true},
      {.model_type = "mixtral",
       .architecture = "llama",
       .pairs_rotary = true,
       .normalizes_experts = true},
      {.model_type = "olmo2", .architecture = "olmo2", .needs_head = true},
      {.model_type = "phi3", .architecture = "phi3"},
      {.model_type = "qwen2", .architecture = "qwen2", .takes_biases = true},
      {.model_type = "qwen2_moe",
       .architecture = "qwen2moe",
       .takes_biases = true,
       .normalizes_experts = false},
      {.model_type = "qwen3", .architecture = "qwen3"},
      {.model_type = "qwen3_moe", .architecture = "qwen3moe", .normalizes_experts = true},
      {.model_type = "starcoder2",
       .architecture = "starcoder2",
       .activation = kGeluTanh,
       .takes_biases = true,
       .needs_biases = true},
  };
  return *families;
}

// nullptr where llama.cpp has no such tensor.
const char* NameOf(TensorPart part) {
  switch (part) {
    case TensorPart::kTokenEmbedding:
      return "token_embd";
    case TensorPart::kPositionEmbedding:
      return "position_embd";
    case TensorPart::kAttentionInputNorm:
      return "attn_norm";
    case TensorPart::kQuery:
      return "attn_q";
    case TensorPart::kKey:
      return "attn_k";
    case TensorPart::kValue:
      return "attn_v";
    case TensorPart::kQueryKeyValue:
      return "attn_qkv";
    case TensorPart::kQueryNorm:
      return "attn_q_norm";
    case TensorPart::kKeyNorm:
      return "attn_k_norm";
    case TensorPart::kAttentionOutput:
      return "attn_output";
    case TensorPart::kAttentionOutputNorm:
      return "post_attention_norm";
    case TensorPart::kMlpInputNorm:
      return "ffn_norm";
    case TensorPart::kRouter:
      return "ffn_gate_inp";
    case TensorPart::kSharedExpertGate:
      return "ffn_gate_inp_shexp";
    case TensorPart::kGate:
      return "ffn_gate";
    case TensorPart::kUp:
    case TensorPart::kGateUp:  // one behind the other, as transformers has them
      return "ffn_up";
    case TensorPart::kDown:
      return "ffn_down";
    case TensorPart::kMlpOutputNorm:
      return "post_ffw_norm";
    case TensorPart::kFinalNorm:
      return "output_norm";
    case TensorPart::kHead:
      return "output";
    default:
      return nullptr;
  }
}

// Of `rows` rows in heads of [2, half]: row [pair, side] of a head is the model's [side, pair].
std::vector<int64_t> PairedRows(int64_t rows, int64_t heads) {
  const int64_t half = rows / heads / 2;
  std::vector<int64_t> order;
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t pair = 0; pair < half; ++pair) {
      for (int64_t side = 0; side < 2; ++side) order.push_back((head * 2 + side) * half + pair);
    }
  }
  return order;
}

// Query, key and value of each head beside each other; llama.cpp has all queries first.
std::vector<int64_t> SeparatedRows(int64_t rows, int64_t heads) {
  const int64_t size = rows / heads / 3;
  std::vector<int64_t> order;
  for (int64_t part = 0; part < 3; ++part) {
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t row = 0; row < size; ++row) order.push_back((head * 3 + part) * size + row);
    }
  }
  return order;
}

// What the names of a routed block's linear layers end with.
const char* ExpertSuffix(const ModelConfig& config, const TableTensor& tensor) {
  if (tensor.expert >= 0) return "_exps";
  const bool is_mlp = tensor.part == TensorPart::kGate || tensor.part == TensorPart::kUp ||
                      tensor.part == TensorPart::kDown;
  const auto& routed = config.experts.routed;
  if (!is_mlp || routed.empty() || !routed[static_cast<size_t>(tensor.block)]) return "";
  return "_shexp";
}

}  // namespace

absl::StatusOr<GgufFamily> GgufFamilyOf(const ModelConfig& config) {
  std::vector<std::string> known;
  for (const GgufFamily& family : Families()) {
    if (config.model_type == family.model_type) return family;
    known.push_back(family.model_type);
  }
  return absl::UnimplementedError(
      absl::StrCat("format gguf: there are no names of llama.cpp here for model_type ",
                   Quote(config.model_type), "; there are for ", ListSome(known, known.size())));
}

absl::StatusOr<GgufPlace> GgufPlaceOf(const GgufFamily& family, const ModelConfig& config,
                                      const TableTensor& tensor) {
  const char* name = NameOf(tensor.part);
  if (name == nullptr || (tensor.role == TensorRole::kLinearBias && !family.takes_biases)) {
    return absl::UnimplementedError(absl::StrCat("tensor ", tensor.name, ": llama.cpp's ",
                                                 family.architecture,
                                                 " has no place for it; use another format"));
  }
  GgufPlace place;
  const std::string parameter = tensor.name.substr(tensor.module.size());  // ".weight"
  place.name = absl::StrCat(tensor.block < 0 ? "" : absl::StrCat("blk.", tensor.block, "."), name,
                            ExpertSuffix(config, tensor), parameter);
  place.expert = tensor.expert;
  place.shape = tensor.shape;
  if (tensor.part == TensorPart::kSharedExpertGate) place.shape = {tensor.shape.back()};
  const int64_t rows = tensor.shape[0];
  if (family.pairs_rotary && tensor.part == TensorPart::kQuery) {
    place.rows = PairedRows(rows, config.num_attention_heads);
  } else if (family.pairs_rotary && tensor.part == TensorPart::kKey) {
    place.rows = PairedRows(rows, config.num_key_value_heads);
  } else if (tensor.part == TensorPart::kQueryKeyValue && config.attention.fused_by_head) {
    place.rows = SeparatedRows(rows, config.num_attention_heads);
  }
  place.add_one = config.norm == NormKind::kRmsPlusOne && tensor.role == TensorRole::kNorm;
  place.always_f32 = tensor.shape.size() == 1 || tensor.role == TensorRole::kRouter ||
                     tensor.part == TensorPart::kPositionEmbedding;
  return place;
}

std::vector<int64_t> RowsOf(const GgufPlace& place) {
  if (!place.rows.empty()) return place.rows;
  std::vector<int64_t> rows(static_cast<size_t>(place.shape[0]));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

}  // namespace ptq
