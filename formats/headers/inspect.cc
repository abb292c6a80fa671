#include "formats/headers/inspect.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/json.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/headers/family.h"
#include "formats/headers/json_lines.h"
#include "formats/headers/model_files.h"
#include "formats/headers/quote.h"
#include "formats/headers/tensor_table.h"

namespace ptq {
namespace {

constexpr size_t kPieceBytes = 1 << 20;

absl::StatusOr<ModelConfig> ReadConfig(const std::string& folder,
                                       std::vector<std::string>* warnings) {
  const std::string path = JoinPath(folder, "config.json");
  if (!PathExists(path)) {
    return absl::InvalidArgumentError("config.json is missing from the model folder");
  }
  PTQ_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigBytes));
  return ParseModelConfig(text, warnings);
}

// What is odd about a checkpoint that is accepted.
void WarnAboutTensors(const CheckpointIndex& index, const ModelConfig& config,
                      std::vector<std::string> outside, std::vector<std::string>* warnings) {
  for (const Row& row : FindFamily(config.model_type)->after_blocks) {
    const std::string name = row.module + "." + row.parameter;
    const auto head = std::find(outside.begin(), outside.end(), name);
    if (row.role != TensorRole::kHead || head == outside.end()) continue;
    outside.erase(head);
    warnings->push_back(name +
                        " is ignored: config.json ties it to the embedding (tie_word_embeddings)");
  }
  if (!outside.empty()) {
    for (std::string& name : outside) name = Quote(name);
    warnings->push_back(absl::StrFormat("tensors that %s does not have are left out: %s",
                                        config.architecture, ListSome(outside, 5)));
  }
  if (!config.has_dtype) return;
  int64_t differing = 0;
  const CheckpointTensor* example = nullptr;
  for (const auto& [name, tensor] : index.tensors()) {
    if (tensor.info.dtype == config.dtype) continue;
    if (differing++ == 0) example = &tensor;
  }
  if (differing > 0) {
    warnings->push_back(
        absl::StrFormat("config.json says %s, but %d of %d tensors are stored otherwise (%s is %s)",
                        DTypeName(config.dtype), differing, index.tensors().size(),
                        Quote(example->info.name), DTypeName(example->info.dtype)));
  }
}

absl::StatusOr<DatasetInspection> InspectJsonLines(const std::string& path) {
  DatasetInspection dataset;
  dataset.kind = DatasetKind::kJsonLines;
  PTQ_ASSIGN_OR_RETURN(auto reader, JsonLinesReader::Open(path));
  bool any_text = false;
  while (true) {
    PTQ_ASSIGN_OR_RETURN(const std::optional<std::string> text, reader.Next());
    if (!text.has_value()) break;
    ++dataset.documents;
    any_text = any_text || text->find_first_not_of(" \t\r\n") != std::string::npos;
  }
  if (!any_text) return absl::InvalidArgumentError("there is no text in it");
  return dataset;
}

// Bytes at the end of `text` that begin a character without ending it: 0 to 3.
size_t UnfinishedTail(std::string_view text) {
  for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
    const unsigned char byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xC0) == 0x80) continue;
    const size_t length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1;
    return length > back ? back : 0;
  }
  return 0;
}

absl::StatusOr<DatasetInspection> InspectText(const ReadableFile& file) {
  DatasetInspection dataset;
  dataset.kind = DatasetKind::kText;
  dataset.documents = 1;
  int64_t line = 1;
  bool any_text = false;
  std::string piece;
  std::string rest;
  for (int64_t offset = 0; offset < file.size();) {
    const size_t count = static_cast<size_t>(std::min<int64_t>(kPieceBytes, file.size() - offset));
    piece = rest;
    piece.resize(rest.size() + count);
    PTQ_RETURN_IF_ERROR(file.ReadAt(offset, piece.data() + rest.size(), count));
    offset += static_cast<int64_t>(count);
    const size_t tail = offset < file.size() ? UnfinishedTail(piece) : 0;
    rest = piece.substr(piece.size() - tail);
    piece.resize(piece.size() - tail);
    if (!IsValidUtf8(piece)) {
      std::string_view left = piece;
      while (true) {
        const std::string_view current = left.substr(0, left.find('\n'));
        if (!IsValidUtf8(current) || current.size() == left.size()) break;
        left.remove_prefix(current.size() + 1);
        ++line;
      }
      return absl::InvalidArgumentError(absl::StrFormat("line %d: not valid UTF-8", line));
    }
    line += std::count(piece.begin(), piece.end(), '\n');
    any_text = any_text || piece.find_first_not_of(" \t\r\n") != std::string::npos;
  }
  if (!any_text) return absl::InvalidArgumentError("there is no text in it");
  return dataset;
}

absl::StatusOr<DatasetInspection> InspectTokens(const SafetensorsHeader& header) {
  const auto found = std::find_if(header.tensors.begin(), header.tensors.end(),
                                  [](const TensorInfo& info) { return info.name == "input_ids"; });
  if (found == header.tensors.end()) {
    return absl::InvalidArgumentError(
        "there is no tensor \"input_ids\" [samples, length] of token ids in it");
  }
  constexpr std::array kIntegers = {DType::kI64, DType::kI32, DType::kI16, DType::kI8,
                                    DType::kU64, DType::kU32, DType::kU16, DType::kU8};
  if (std::find(kIntegers.begin(), kIntegers.end(), found->dtype) == kIntegers.end()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("input_ids has dtype %s, not an integer type", DTypeName(found->dtype)));
  }
  if (found->shape.size() != 2 || found->bytes() == 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "input_ids has shape %s, not [samples, length]", ShapeToString(found->shape)));
  }
  DatasetInspection dataset;
  dataset.kind = DatasetKind::kTokens;
  dataset.documents = found->shape[0];
  dataset.token_length = found->shape[1];
  return dataset;
}

absl::StatusOr<DatasetInspection> InspectByKind(const std::string& path, DatasetKind kind,
                                                const std::string& name) {
  PTQ_ASSIGN_OR_RETURN(const auto file, ReadableFile::Open(path));
  if (file.size() == 0) return absl::InvalidArgumentError(Quote(name) + ": the file is empty");
  absl::StatusOr<DatasetInspection> dataset = DatasetInspection();
  if (kind == DatasetKind::kTokens) {
    PTQ_ASSIGN_OR_RETURN(const auto header, ReadSafetensorsHeader(file, Quote(name)));
    dataset = InspectTokens(header);
  } else {
    dataset = kind == DatasetKind::kText ? InspectText(file) : InspectJsonLines(path);
  }
  if (!dataset.ok()) return Annotate(dataset.status(), Quote(name));
  dataset->size_bytes = file.size();
  return dataset;
}

}  // namespace

absl::StatusOr<CheckpointInspection> InspectCheckpoint(const std::string& folder) {
  if (!IsDirectory(folder)) {
    return absl::NotFoundError("the model folder " + Quote(folder) + " does not exist");
  }
  CheckpointInspection inspection;
  // What stands in the way of a folder for llama.cpp is not its config.json.
  const auto gguf = FindGgufFile(folder);
  if (!gguf.ok() || !gguf->empty()) return CheckpointIndex::Open(folder).status();
  PTQ_ASSIGN_OR_RETURN(inspection.config, ReadConfig(folder, &inspection.warnings));
  PTQ_ASSIGN_OR_RETURN(inspection.index, CheckpointIndex::Open(folder));
  std::vector<std::string> outside;
  PTQ_RETURN_IF_ERROR(CheckAgainstTable(inspection.index, inspection.config, &outside));
  WarnAboutTensors(inspection.index, inspection.config, std::move(outside), &inspection.warnings);
  inspection.has_tokenizer = PathExists(JoinPath(folder, "tokenizer.json"));
  return inspection;
}

absl::StatusOr<DatasetInspection> InspectDataset(const std::string& path, const std::string& name) {
  if (absl::EndsWith(name, ".jsonl")) return InspectByKind(path, DatasetKind::kJsonLines, name);
  if (absl::EndsWith(name, ".txt")) return InspectByKind(path, DatasetKind::kText, name);
  if (absl::EndsWith(name, ".safetensors")) return InspectByKind(path, DatasetKind::kTokens, name);
  return absl::InvalidArgumentError(
      Quote(name) + ": calibration and evaluation data must be .jsonl, .txt or .safetensors");
}

}  // namespace ptq
