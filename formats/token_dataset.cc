#include "formats/token_dataset.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/json.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "common/torch_status.h"
#include "formats/checkpoint_reader.h"
#include "formats/headers/inspect.h"
#include "formats/headers/json_lines.h"
#include "formats/headers/safetensors_header.h"
#include "formats/tokenizer.h"

namespace ptq {
namespace {

absl::StatusOr<DatasetKind> KindOf(const std::string& path) {
  if (absl::EndsWith(path, ".jsonl")) return DatasetKind::kJsonLines;
  if (absl::EndsWith(path, ".txt")) return DatasetKind::kText;
  if (absl::EndsWith(path, ".safetensors")) return DatasetKind::kTokens;
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": the name must end in .jsonl, .txt or .safetensors"));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> OpenTokenizer(const std::string& model_folder) {
  auto tokenizer = Tokenizer::Open(model_folder);
  if (absl::IsNotFound(tokenizer.status())) {
    return absl::InvalidArgumentError(
        "the model has no tokenizer.json, so text can't be tokenized; pass a .safetensors file "
        "with "
        "integer input_ids [samples, length] instead");
  }
  return tokenizer;
}

// The first end-of-sequence id of config.json, else the one that tokenizer_config.json names.
absl::StatusOr<int64_t> EosToken(const std::string& model_folder, const ModelConfig& config,
                                 const Tokenizer& tokenizer) {
  if (!config.eos_token_ids.empty()) return config.eos_token_ids.front();
  const std::string name = "tokenizer_config.json";
  const std::string hint =
      "calibration documents are separated by the end-of-sequence token, but neither config.json "
      "(eos_token_id) nor tokenizer_config.json (eos_token) names one";
  auto text = ReadFile(JoinPath(model_folder, name));
  if (absl::IsNotFound(text.status())) return absl::InvalidArgumentError(hint);
  PTQ_RETURN_IF_ERROR(text.status());
  const auto json = ParseJson(*text);
  if (!json.ok()) return Annotate(json.status(), name);
  if (!json->is_object()) return absl::InvalidArgumentError(name + ": not an object");
  auto token = json->find("eos_token");
  // A plain string, or an added token's object.
  if (token != json->end() && token->is_object()) {
    const auto content = token->find("content");
    if (content != token->end() && content->is_string()) {
      return tokenizer.TokenId(content->get<std::string>());
    }
  }
  if (token == json->end() || !token->is_string()) return absl::InvalidArgumentError(hint);
  return tokenizer.TokenId(token->get<std::string>());
}

absl::Status CheckIds(const std::vector<int64_t>& ids, const ModelConfig& config) {
  for (const int64_t id : ids) {
    if (id < 0 || id >= config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "token id %d is outside of the model's vocabulary of %d", id, config.vocab_size));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  // Tokenization needs the whole text and some hundred bytes a token.
  constexpr int64_t kMaxTextBytes = int64_t{256} << 20;
  PTQ_ASSIGN_OR_RETURN(std::string text, ReadFile(path, kMaxTextBytes));
  if (!IsValidUtf8(text))
    return absl::InvalidArgumentError(absl::StrCat(path, ": not valid UTF-8"));
  return text;
}

at::Tensor Windows(const std::vector<int64_t>& ids, int64_t samples, int64_t length) {
  at::Tensor windows = at::empty({samples, length}, at::kLong);
  std::copy_n(ids.begin(), samples * length, windows.mutable_data_ptr<int64_t>());
  return windows;
}

// `input_ids` of a safetensors file, the first `samples` rows (0: all) and up to `extra` more, cut
// to `length`.
absl::StatusOr<TokenWindows> LoadTokens(const std::string& path, const ModelConfig& config,
                                        int64_t samples, int64_t length, int64_t extra) {
  PTQ_ASSIGN_OR_RETURN(const auto file, ReadableFile::Open(path));
  PTQ_ASSIGN_OR_RETURN(const auto header, ReadSafetensorsHeader(file));
  const auto found = std::find_if(header.tensors.begin(), header.tensors.end(),
                                  [](const TensorInfo& info) { return info.name == "input_ids"; });
  if (found == header.tensors.end() || found->shape.size() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": there is no tensor input_ids of shape [samples, length]"));
  }
  PTQ_ASSIGN_OR_RETURN(const at::ScalarType dtype, ToScalarType(found->dtype));
  if (!at::isIntegralType(dtype, /*includeBool=*/false)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": input_ids is ", DTypeName(found->dtype), ", not an integer type"));
  }
  const int64_t rows = found->shape[0];
  const int64_t columns = found->shape[1];
  const int64_t least = samples == 0 ? rows : samples;
  const int64_t wanted = std::max(least, std::min(least + extra, rows));
  if (columns < length || rows < wanted || wanted == 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: input_ids holds %d samples of %d tokens; %d of %d were asked for",
                        path, rows, columns, std::max<int64_t>(least, 1), length));
  }
  const int64_t element = DTypeBits(found->dtype) / 8;
  std::vector<char> bytes(static_cast<size_t>(wanted * columns * element));
  PTQ_RETURN_IF_ERROR(file.ReadAt(header.data_offset + found->begin, bytes.data(), bytes.size()));
  TokenWindows windows;
  windows.total_tokens = rows * columns;
  windows.ids = at::from_blob(bytes.data(), {wanted, columns}, at::TensorOptions().dtype(dtype))
                    .to(at::kLong)
                    .narrow(1, 0, length)
                    .clone();
  const int64_t* ids = windows.ids.const_data_ptr<int64_t>();
  const absl::Status status = CheckIds({ids, ids + windows.ids.numel()}, config);
  if (!status.ok()) return Annotate(status, absl::StrCat(path, ": input_ids"));
  return windows;
}

// Calibration text: documents, each followed by the end-of-sequence token.
absl::StatusOr<TokenWindows> LoadCalibrationText(const std::string& path, DatasetKind kind,
                                                 const std::string& model_folder,
                                                 const ModelConfig& config, int64_t samples,
                                                 int64_t length, int64_t extra) {
  PTQ_ASSIGN_OR_RETURN(const auto tokenizer, OpenTokenizer(model_folder));
  PTQ_ASSIGN_OR_RETURN(const int64_t eos, EosToken(model_folder, config, *tokenizer));
  const size_t needed = static_cast<size_t>(samples * length);
  std::vector<int64_t> ids;
  const auto add = [&](const std::string& document) -> absl::Status {
    PTQ_ASSIGN_OR_RETURN(const auto encoded, tokenizer->Encode(document));
    ids.insert(ids.end(), encoded.begin(), encoded.end());
    ids.push_back(eos);
    return absl::OkStatus();
  };
  if (kind == DatasetKind::kText) {
    PTQ_ASSIGN_OR_RETURN(const std::string text, ReadText(path));
    PTQ_RETURN_IF_ERROR(add(text));
  } else {
    PTQ_ASSIGN_OR_RETURN(auto lines, JsonLinesReader::Open(path));
    while (ids.size() < needed + static_cast<size_t>(extra * length)) {
      auto document = lines.Next();
      if (!document.ok()) return Annotate(document.status(), path);
      if (!document->has_value()) break;
      PTQ_RETURN_IF_ERROR(add(**document));
    }
  }
  if (ids.size() < needed) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: %d tokens are too few for %d samples of %d tokens; give more text, or lower --samples "
        "or --sequence-length",
        path, ids.size(), samples, length));
  }
  PTQ_RETURN_IF_ERROR(CheckIds(ids, config));
  const int64_t complete = static_cast<int64_t>(ids.size()) / length;
  return TokenWindows{Windows(ids, std::min(samples + extra, complete), length),
                      static_cast<int64_t>(ids.size())};
}

absl::StatusOr<std::string> EvaluationText(const std::string& path, DatasetKind kind) {
  if (kind == DatasetKind::kText) return ReadText(path);
  PTQ_ASSIGN_OR_RETURN(auto lines, JsonLinesReader::Open(path));
  std::string text;
  for (bool first = true;; first = false) {
    auto document = lines.Next();
    if (!document.ok()) return Annotate(document.status(), path);
    if (!document->has_value()) return text;
    if (!first) text += '\n';
    text += **document;
  }
}

absl::Status CheckSizes(int64_t samples, int64_t smallest, int64_t length) {
  // 2^40 tokens: far above what memory holds, far below what overflows.
  constexpr int64_t kMaxTokens = int64_t{1} << 40;
  if (samples < smallest || length < 1 || samples > kMaxTokens / length) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d samples of %d tokens can't be taken", samples, length));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenWindows> LoadCalibrationWindows(const std::string& path,
                                                    const std::string& model_folder,
                                                    const ModelConfig& config, int64_t samples,
                                                    int64_t length, int64_t extra) {
  PTQ_RETURN_IF_ERROR(CheckSizes(samples + extra, 1, length));
  PTQ_ASSIGN_OR_RETURN(const DatasetKind kind, KindOf(path));
  return CatchTorchErrors(path, [&] {
    return kind == DatasetKind::kTokens
               ? LoadTokens(path, config, samples, length, extra)
               : LoadCalibrationText(path, kind, model_folder, config, samples, length, extra);
  });
}

absl::StatusOr<TokenWindows> LoadEvaluationWindows(const std::string& path,
                                                   const std::string& model_folder,
                                                   const ModelConfig& config, int64_t samples,
                                                   int64_t length) {
  PTQ_RETURN_IF_ERROR(CheckSizes(samples, 0, length));
  PTQ_ASSIGN_OR_RETURN(const DatasetKind kind, KindOf(path));
  return CatchTorchErrors(path, [&]() -> absl::StatusOr<TokenWindows> {
    if (kind == DatasetKind::kTokens) return LoadTokens(path, config, samples, length, 0);
    PTQ_ASSIGN_OR_RETURN(const auto tokenizer, OpenTokenizer(model_folder));
    PTQ_ASSIGN_OR_RETURN(const std::string text, EvaluationText(path, kind));
    PTQ_ASSIGN_OR_RETURN(const std::vector<int64_t> ids, tokenizer->Encode(text));
    const int64_t total = static_cast<int64_t>(ids.size());
    const int64_t complete = total / length;
    if (complete == 0) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%s: %d tokens are too few for one evaluation window of %d", path, total, length));
    }
    PTQ_RETURN_IF_ERROR(CheckIds(ids, config));
    const int64_t taken = samples == 0 ? complete : std::min(samples, complete);
    return TokenWindows{Windows(ids, taken, length), total};
  });
}

}  // namespace ptq
