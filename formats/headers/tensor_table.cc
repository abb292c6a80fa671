#include "formats/headers/tensor_table.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

// Sizes that rows are made of.
enum class Extent { kVocab, kHidden, kIntermediate, kQueries, kKeysAndValues };

// When a row's tensor exists.
enum class Presence { kAlways, kIfAttentionBias, kIfMlpBias, kUnlessTied };

struct Row {
  const char* module;  // within its block, or of the whole model
  const char* parameter;
  TensorRole role;
  std::vector<Extent> shape;
  Presence presence = Presence::kAlways;
};

struct FamilyDescription {
  const char* model_type;
  const char* architecture;
  const char* block_prefix;  // followed by the block's number and '.'
  std::vector<Row> before_blocks;
  std::vector<Row> block;
  std::vector<Row> after_blocks;
  std::vector<const char*> ignored_suffixes;  // buffers that old checkpoints carry
};

const std::vector<FamilyDescription>& Families() {
  using enum Extent;
  using enum Presence;
  using enum TensorRole;
  static const auto* const families = new std::vector<FamilyDescription>{
      {.model_type = "llama",
       .architecture = "LlamaForCausalLM",
       .block_prefix = "model.layers.",
       .before_blocks = {{"model.embed_tokens", "weight", kEmbedding, {kVocab, kHidden}}},
       .block =
           {
               {"input_layernorm", "weight", kNorm, {kHidden}},
               {"self_attn.q_proj", "weight", kLinearWeight, {kQueries, kHidden}},
               {"self_attn.q_proj", "bias", kLinearBias, {kQueries}, kIfAttentionBias},
               {"self_attn.k_proj", "weight", kLinearWeight, {kKeysAndValues, kHidden}},
               {"self_attn.k_proj", "bias", kLinearBias, {kKeysAndValues}, kIfAttentionBias},
               {"self_attn.v_proj", "weight", kLinearWeight, {kKeysAndValues, kHidden}},
               {"self_attn.v_proj", "bias", kLinearBias, {kKeysAndValues}, kIfAttentionBias},
               {"self_attn.o_proj", "weight", kLinearWeight, {kHidden, kQueries}},
               {"self_attn.o_proj", "bias", kLinearBias, {kHidden}, kIfAttentionBias},
               {"post_attention_layernorm", "weight", kNorm, {kHidden}},
               {"mlp.gate_proj", "weight", kLinearWeight, {kIntermediate, kHidden}},
               {"mlp.gate_proj", "bias", kLinearBias, {kIntermediate}, kIfMlpBias},
               {"mlp.up_proj", "weight", kLinearWeight, {kIntermediate, kHidden}},
               {"mlp.up_proj", "bias", kLinearBias, {kIntermediate}, kIfMlpBias},
               {"mlp.down_proj", "weight", kLinearWeight, {kHidden, kIntermediate}},
               {"mlp.down_proj", "bias", kLinearBias, {kHidden}, kIfMlpBias},
           },
       .after_blocks = {{"model.norm", "weight", kNorm, {kHidden}},
                        {"lm_head", "weight", kHead, {kVocab, kHidden}, kUnlessTied}},
       .ignored_suffixes = {".rotary_emb.inv_freq"}},
  };
  return *families;
}

// nullptr if there is none.
const FamilyDescription* FindFamily(const std::string& model_type) {
  for (const FamilyDescription& family : Families()) {
    if (model_type == family.model_type) return &family;
  }
  return nullptr;
}

int64_t Evaluate(Extent extent, const ModelConfig& config) {
  switch (extent) {
    case Extent::kVocab:
      return config.vocab_size;
    case Extent::kHidden:
      return config.hidden_size;
    case Extent::kIntermediate:
      return config.intermediate_size;
    case Extent::kQueries:
      return config.num_attention_heads * config.head_dim;
    case Extent::kKeysAndValues:
      return config.num_key_value_heads * config.head_dim;
  }
  return 0;
}

bool IsPresent(Presence presence, const ModelConfig& config) {
  switch (presence) {
    case Presence::kAlways:
      return true;
    case Presence::kIfAttentionBias:
      return config.attention_bias;
    case Presence::kIfMlpBias:
      return config.mlp_bias;
    case Presence::kUnlessTied:
      return !config.tie_word_embeddings;
  }
  return false;
}

void AppendRows(const std::vector<Row>& rows, const ModelConfig& config, const std::string& prefix,
                int64_t block, std::vector<TableTensor>* table) {
  for (const Row& row : rows) {
    if (!IsPresent(row.presence, config)) continue;
    TableTensor& tensor = table->emplace_back();
    tensor.module = prefix + row.module;
    tensor.name = tensor.module + "." + row.parameter;
    tensor.role = row.role;
    tensor.block = block;
    for (const Extent extent : row.shape) tensor.shape.push_back(Evaluate(extent, config));
  }
}

bool IsIgnored(const FamilyDescription& family, const std::string& name) {
  return std::any_of(family.ignored_suffixes.begin(), family.ignored_suffixes.end(),
                     [&name](const char* suffix) { return absl::EndsWith(name, suffix); });
}

// Names that only quantized checkpoints have: GPTQ and AWQ, compressed-tensors, torchao,
// bitsandbytes, FP8.
bool IsQuantizedPart(const std::string& name) {
  constexpr const char* kSuffixes[] = {".qweight",      ".qzeros",         "_qdata",
                                       ":qdata",        ".weight_packed",  ".weight_scale",
                                       ".weight_shape", "weight_int8pack", ".g_idx",
                                       "_scale_inv",    ".absmax",         ".quant_map",
                                       ".SCB",          ".qscale",         ".weight_zero_point"};
  return std::any_of(std::begin(kSuffixes), std::end(kSuffixes),
                     [&name](const char* suffix) { return absl::EndsWith(name, suffix); });
}

absl::Status AlreadyQuantized(const CheckpointTensor& tensor) {
  return absl::InvalidArgumentError(absl::StrFormat(
      "%s: tensor %s (%s) shows that the checkpoint is already quantized: start from the original "
      "weights",
      tensor.file, Quote(tensor.info.name), DTypeName(tensor.info.dtype)));
}

// Why config.json asks for a tensor that is not there.
std::string WhyExpected(const TableTensor& expected, const ModelConfig& config) {
  switch (expected.role) {
    case TensorRole::kHead:
      return "tie_word_embeddings is false";
    case TensorRole::kLinearBias:
      return absl::StrContains(expected.name, ".mlp.") ? "mlp_bias is true"
                                                       : "attention_bias is true";
    default:
      return expected.block >= 0
                 ? absl::StrFormat("num_hidden_layers is %d", config.num_hidden_layers)
                 : absl::StrFormat("model_type is %s", config.model_type);
  }
}

absl::Status CheckTensor(const CheckpointTensor* found, const TableTensor& expected,
                         const ModelConfig& config) {
  if (found == nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "tensor %s is missing from the checkpoint, but config.json asks for it (%s)", expected.name,
        WhyExpected(expected, config)));
  }
  if (found->info.dtype != DType::kF32 && found->info.dtype != DType::kF16 &&
      found->info.dtype != DType::kBF16) {
    if (expected.role == TensorRole::kLinearWeight) return AlreadyQuantized(*found);
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: tensor %s has dtype %s; F32, F16 and BF16 are supported", found->file,
                        expected.name, DTypeName(found->info.dtype)));
  }
  if (found->info.shape != expected.shape) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: tensor %s has shape %s, but config.json asks for %s", found->file, expected.name,
        ShapeToString(found->info.shape), ShapeToString(expected.shape)));
  }
  return absl::OkStatus();
}

// Sorted names that no row of `table` asks for and the family does not ignore.
std::vector<std::string> Outside(const CheckpointIndex& index,
                                 const std::vector<TableTensor>& table,
                                 const FamilyDescription& family) {
  std::vector<std::string_view> expected;
  expected.reserve(table.size());
  for (const TableTensor& tensor : table) expected.push_back(tensor.name);
  std::sort(expected.begin(), expected.end());
  // Both are sorted: one walk finds what the table lacks.
  std::vector<std::string> outside;
  auto next = expected.begin();
  for (const auto& [name, tensor] : index.tensors()) {
    while (next != expected.end() && *next < name) ++next;
    const bool in_table = next != expected.end() && *next == name;
    if (!in_table && !IsIgnored(family, name)) outside.push_back(name);
  }
  return outside;
}

}  // namespace

std::vector<TableTensor> BuildTensorTable(const ModelConfig& config) {
  std::vector<TableTensor> table;
  const FamilyDescription* family = FindFamily(config.model_type);
  if (family == nullptr) return table;
  table.reserve(family->before_blocks.size() + family->after_blocks.size() +
                family->block.size() * static_cast<size_t>(config.num_hidden_layers));
  AppendRows(family->before_blocks, config, "", -1, &table);
  for (int64_t block = 0; block < config.num_hidden_layers; ++block) {
    AppendRows(family->block, config, family->block_prefix + std::to_string(block) + ".", block,
               &table);
  }
  AppendRows(family->after_blocks, config, "", -1, &table);
  return table;
}

bool IsSupportedModelType(const std::string& model_type) {
  return FindFamily(model_type) != nullptr;
}

std::vector<std::string> SupportedModelTypes() {
  std::vector<std::string> types;
  for (const FamilyDescription& family : Families()) types.push_back(family.model_type);
  return types;
}

std::string ArchitectureOf(const std::string& model_type) {
  const FamilyDescription* family = FindFamily(model_type);
  return family == nullptr ? "" : family->architecture;
}

absl::Status CheckAgainstTable(const CheckpointIndex& index, const ModelConfig& config,
                               std::vector<std::string>* outside) {
  const FamilyDescription* family = FindFamily(config.model_type);
  if (family == nullptr) {
    return absl::UnimplementedError("model_type " + Quote(config.model_type) + " is not supported");
  }
  for (const auto& [name, tensor] : index.tensors()) {
    if (IsQuantizedPart(name)) return AlreadyQuantized(tensor);
  }
  const std::vector<TableTensor> table = BuildTensorTable(config);
  for (const TableTensor& expected : table) {
    PTQ_RETURN_IF_ERROR(CheckTensor(index.Find(expected.name), expected, config));
  }
  std::vector<std::string> extra;
  // Every row was found: equal counts mean that nothing else is there.
  if (index.tensors().size() > table.size()) extra = Outside(index, table, *family);
  for (const std::string& name : extra) {
    if (!absl::StartsWith(name, family->block_prefix)) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: tensor %s is not part of the model that config.json describes (%d blocks, "
        "attention_bias %s, mlp_bias %s): correct config.json or remove the tensor",
        index.Find(name)->file, Quote(name), config.num_hidden_layers,
        config.attention_bias ? "true" : "false", config.mlp_bias ? "true" : "false"));
  }
  if (outside != nullptr) *outside = std::move(extra);
  return absl::OkStatus();
}

}  // namespace ptq
