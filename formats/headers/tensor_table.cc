#include "formats/headers/tensor_table.h"

#include <algorithm>
#include <map>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "common/status_macros.h"
#include "formats/headers/family.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

std::string WithExpert(const std::string& module, int64_t expert) {
  return expert < 0 ? module : absl::StrReplaceAll(module, {{"{i}", std::to_string(expert)}});
}

// What loaders make one layer of.
std::string FusedSetOf(const std::string& module, TensorPart part) {
  const std::string parent = module.substr(0, module.rfind('.') + 1);
  switch (part) {
    case TensorPart::kQuery:
    case TensorPart::kKey:
    case TensorPart::kValue:
      return parent + "qkv";
    case TensorPart::kGate:
    case TensorPart::kUp:
      return parent + "gate_up";
    case TensorPart::kQueryDown:
    case TensorPart::kKeyValueDown:
      return parent + "qkv_a";
    default:
      return "";
  }
}

void AppendRow(const Row& row, const ModelConfig& config, const std::string& prefix, int64_t block,
               int64_t expert, std::vector<TableTensor>* table) {
  if (!row.present.holds(config, block)) return;
  TableTensor& tensor = table->emplace_back();
  tensor.module = prefix + WithExpert(row.module, expert);
  tensor.name = tensor.module + "." + row.parameter;
  tensor.role = row.role;
  tensor.part = row.part;
  tensor.transposed = row.transposed;
  tensor.block = block;
  tensor.expert = expert;
  for (const Extent extent : row.shape) tensor.shape.push_back(extent(config));
}

void AppendRows(const std::vector<Row>& rows, const ModelConfig& config, const std::string& prefix,
                int64_t block, std::vector<TableTensor>* table) {
  const size_t first = table->size();
  for (size_t begin = 0; begin < rows.size();) {
    size_t end = begin + 1;
    while (end < rows.size() && rows[end].experts == rows[begin].experts) ++end;
    const Extent experts = rows[begin].experts;
    const int64_t count = experts == nullptr ? 1 : experts(config);
    for (int64_t expert = 0; expert < count; ++expert) {
      for (size_t row = begin; row < end; ++row) {
        AppendRow(rows[row], config, prefix, block, experts == nullptr ? -1 : expert, table);
      }
    }
    begin = end;
  }
  // A set of one is none: an MLP without a gate has nothing to fuse.
  std::map<std::string, int> members;
  const auto linear = [](const TableTensor& tensor) {
    return tensor.role == TensorRole::kLinearWeight || tensor.role == TensorRole::kLinearBias;
  };
  for (size_t i = first; i < table->size(); ++i) {
    TableTensor& tensor = (*table)[i];
    if (linear(tensor)) tensor.fused_set = FusedSetOf(tensor.module, tensor.part);
    if (tensor.role == TensorRole::kLinearWeight) ++members[tensor.fused_set];
  }
  for (size_t i = first; i < table->size(); ++i) {
    TableTensor& tensor = (*table)[i];
    if (members[tensor.fused_set] < 2) tensor.fused_set.clear();
  }
}

// The row of `rows` with this name within its block or the model, of expert 0 where it has experts;
// nullptr if there is none.
const Row* FindRow(const std::vector<Row>& rows, std::string_view name) {
  for (const Row& row : rows) {
    if (WithExpert(row.module, 0) + "." + row.parameter == name) return &row;
  }
  return nullptr;
}

bool IsIgnored(const Family& family, const std::string& name) {
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
      "weights, or write it in another format with `convert`",
      tensor.file, Quote(tensor.info.name), DTypeName(tensor.info.dtype)));
}

// Why config.json asks for a tensor that is not there.
std::string WhyExpected(const TableTensor& expected, const Family& family,
                        const ModelConfig& config) {
  std::string_view name = expected.name;
  const Row* row = nullptr;
  if (expected.block >= 0) {
    name.remove_prefix(BlockName(config, expected.block).size() + 1);
    row = FindRow(family.block, name);
  } else {
    row = FindRow(family.after_blocks, name);
  }
  if (row != nullptr && *row->present.why != '\0') return row->present.why;
  return expected.block >= 0
             ? absl::StrFormat("%s is %d", family.keys.num_hidden_layers, config.num_hidden_layers)
             : absl::StrFormat("model_type is %s", config.model_type);
}

// Why config.json does not ask for tensor `name` of a block.
std::string WhyNotExpected(std::string_view name, const Family& family, const ModelConfig& config) {
  name.remove_prefix(std::string_view(family.block_prefix).size());
  const size_t dot = name.find('.');
  const Row* row =
      dot == std::string_view::npos ? nullptr : FindRow(family.block, name.substr(dot + 1));
  if (row != nullptr && *row->present.why != '\0' && !row->present.holds(config, 0)) {
    return absl::StrFormat("only if %s", row->present.why);
  }
  return absl::StrFormat("it has %d blocks", config.num_hidden_layers);
}

absl::Status CheckTensor(const CheckpointTensor* found, const TableTensor& expected,
                         const Family& family, const ModelConfig& config) {
  if (found == nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "tensor %s is missing from the checkpoint, but config.json asks for it (%s)", expected.name,
        WhyExpected(expected, family, config)));
  }
  if (found->info.dtype != DType::kF32 && found->info.dtype != DType::kF16 &&
      found->info.dtype != DType::kBF16) {
    if (expected.role == TensorRole::kLinearWeight) return AlreadyQuantized(*found);
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: tensor %s has dtype %s; F32, F16 and BF16 are supported", found->file,
                        expected.name, DTypeName(found->info.dtype)));
  }
  if (found->info.shape != expected.stored_shape()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: tensor %s has shape %s, but config.json asks for %s", found->file, expected.name,
        ShapeToString(found->info.shape), ShapeToString(expected.stored_shape())));
  }
  return absl::OkStatus();
}

// Sorted names that no row of `table` asks for and the family does not ignore.
std::vector<std::string> Outside(const CheckpointIndex& index,
                                 const std::vector<TableTensor>& table, const Family& family) {
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
  const Family* family = FindFamily(config.model_type);
  if (family == nullptr) return table;
  table.reserve(family->before_blocks.size() + family->after_blocks.size() +
                family->block.size() * static_cast<size_t>(config.num_hidden_layers));
  AppendRows(family->before_blocks, config, "", -1, &table);
  for (int64_t block = 0; block < config.num_hidden_layers; ++block) {
    AppendRows(family->block, config, BlockName(config, block) + ".", block, &table);
  }
  AppendRows(family->after_blocks, config, "", -1, &table);
  return table;
}

std::vector<TableTensor> BuildBlockTable(const ModelConfig& config, int64_t block) {
  std::vector<TableTensor> table;
  const Family* family = FindFamily(config.model_type);
  if (family == nullptr || block < 0 || block >= config.num_hidden_layers) return table;
  AppendRows(family->block, config, BlockName(config, block) + ".", block, &table);
  return table;
}

std::string BlockName(const ModelConfig& config, int64_t block) {
  const Family* family = FindFamily(config.model_type);
  return (family == nullptr ? "" : family->block_prefix) + std::to_string(block);
}

bool IsSupportedModelType(const std::string& model_type) {
  return FindFamily(model_type) != nullptr;
}

std::vector<std::string> SupportedModelTypes() {
  std::vector<std::string> types;
  for (const Family& family : Families()) types.push_back(family.model_type);
  return types;
}

std::string ArchitectureOf(const std::string& model_type) {
  const Family* family = FindFamily(model_type);
  return family == nullptr ? "" : family->architecture;
}

absl::Status CheckAgainstTable(const CheckpointIndex& index, const ModelConfig& config,
                               std::vector<std::string>* outside) {
  const Family* family = FindFamily(config.model_type);
  if (family == nullptr) {
    return absl::UnimplementedError("model_type " + Quote(config.model_type) + " is not supported");
  }
  for (const auto& [name, tensor] : index.tensors()) {
    if (IsQuantizedPart(name)) return AlreadyQuantized(tensor);
  }
  const std::vector<TableTensor> table = BuildTensorTable(config);
  for (const TableTensor& expected : table) {
    PTQ_RETURN_IF_ERROR(CheckTensor(index.Find(expected.name), expected, *family, config));
  }
  std::vector<std::string> extra;
  // Every row was found: equal counts mean that nothing else is there.
  if (index.tensors().size() > table.size()) extra = Outside(index, table, *family);
  for (const std::string& name : extra) {
    if (!absl::StartsWith(name, family->block_prefix)) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: tensor %s is not part of the model that config.json describes (%s): correct "
        "config.json or remove the tensor",
        index.Find(name)->file, Quote(name), WhyNotExpected(name, *family, config)));
  }
  if (outside != nullptr) *outside = std::move(extra);
  return absl::OkStatus();
}

}  // namespace ptq
