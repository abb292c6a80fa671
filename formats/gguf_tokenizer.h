// A Hugging Face tokenizer as GGUF metadata: tokens, merges or scores, special tokens, and the name
// of the pre-tokenizer that llama.cpp has built in.
#ifndef PTQ_FORMATS_GGUF_TOKENIZER_H_
#define PTQ_FORMATS_GGUF_TOKENIZER_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "common/json.h"
#include "formats/gguf_file.h"

namespace ptq {

// The "tokenizer.*" keys of the model in `folder`, from tokenizer.json, tokenizer_config.json,
// config.json and chat_template.jinja. A byte-level BPE becomes llama.cpp's "gpt2" model, a BPE
// with byte fallback (SentencePiece's) its "llama" model. Ids without a token are filled with
// "[PAD7]", so that there is one for each of the `vocab_size` rows of the embedding; added tokens
// beyond them are left out. Without a tokenizer.json: "no_vocab", which llama.cpp loads for token
// ids. kFailedPrecondition saying which part llama.cpp has no equal of, because another one in its
// place would split text differently and say nothing; kInvalidArgument for damaged files.
absl::StatusOr<GgufMetadata> GgufTokenizerMetadata(const std::string& folder, int64_t vocab_size);

// What tokenizer.json says of the pre-tokenizer that llama.cpp calls `name`.
struct ByteLevelSplit {
  Json pre_tokenizer;
  bool ignore_merges = false;
};
// Nothing for a name that GgufTokenizerMetadata does not give.
std::optional<ByteLevelSplit> ByteLevelSplitOf(const std::string& name);

}  // namespace ptq

#endif  // PTQ_FORMATS_GGUF_TOKENIZER_H_
