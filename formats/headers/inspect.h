// Everything that can be said about a model or dataset without libtorch and without reading
// weights: what CreateModel and CreateDataset answer from, and what the worker checks again.
#ifndef PTQ_FORMATS_HEADERS_INSPECT_H_
#define PTQ_FORMATS_HEADERS_INSPECT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/headers/checkpoint_index.h"
#include "formats/headers/model_config.h"

namespace ptq {

struct CheckpointInspection {
  ModelConfig config;
  CheckpointIndex index;
  bool has_tokenizer = false;         // tokenizer.json
  std::vector<std::string> warnings;  // sentences for the report
};

// config.json, index, headers, tensor table. Well under a second for any checkpoint.
absl::StatusOr<CheckpointInspection> InspectCheckpoint(const std::string& folder);

enum class DatasetKind { kJsonLines, kText, kTokens };

struct DatasetInspection {
  DatasetKind kind = DatasetKind::kText;
  int64_t documents = 0;  // lines, 1, or samples
  int64_t size_bytes = 0;
  int64_t token_length = 0;  // kTokens: columns of input_ids
};

// By suffix of `name` (.jsonl, .txt, .safetensors), the bytes being at `path`. kInvalidArgument:
// another suffix, empty, invalid UTF-8 or JSON (with the 1-based line number), a line without a
// string "text", no text at all, input_ids missing, not an integer dtype, or not of rank 2.
absl::StatusOr<DatasetInspection> InspectDataset(const std::string& path, const std::string& name);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_INSPECT_H_
