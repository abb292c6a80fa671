// Calibration and evaluation text as windows of token ids.
#ifndef PTQ_FORMATS_TOKEN_DATASET_H_
#define PTQ_FORMATS_TOKEN_DATASET_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "formats/headers/model_config.h"

namespace ptq {

struct TokenWindows {
  at::Tensor ids;            // [S, T] int64, CPU, each in [0, vocab_size)
  int64_t total_tokens = 0;  // read; JSON Lines are read only until there are enough
};

// `.jsonl` (documents in "text"), `.txt` (one document) or safetensors (`input_ids` [S', T']
// integers: T' must be at least `length`, rows are cut to it). Documents are tokenized without
// special tokens, each followed by the EOS token (the first of config.json's eos_token_id, else
// tokenizer_config.json's eos_token; none: kInvalidArgument), joined, and the first `samples`
// windows of `length` are taken, and up to `extra` more if there are so many. kInvalidArgument:
// fewer tokens than samples * length, saying how many there were; text without tokenizer.json, with
// the hint to pass input_ids; an id outside the vocabulary. The tokenizer is opened from
// `model_folder`.
absl::StatusOr<TokenWindows> LoadCalibrationWindows(const std::string& path,
                                                    const std::string& model_folder,
                                                    const ModelConfig& config, int64_t samples,
                                                    int64_t length, int64_t extra = 0);

// Text tokenized whole (a .jsonl's texts joined by newlines) without special tokens and cut into
// windows of `length`; the incomplete last one is dropped; `samples` 0 takes all. kInvalidArgument
// if not one window is complete.
absl::StatusOr<TokenWindows> LoadEvaluationWindows(const std::string& path,
                                                   const std::string& model_folder,
                                                   const ModelConfig& config, int64_t samples,
                                                   int64_t length);

}  // namespace ptq

#endif  // PTQ_FORMATS_TOKEN_DATASET_H_
