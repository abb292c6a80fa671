// tokenizer.json and tokenizer_config.json out of GGUF metadata: the way back of gguf_tokenizer.h.
#ifndef PTQ_FORMATS_GGUF_TOKENIZER_FILES_H_
#define PTQ_FORMATS_GGUF_TOKENIZER_FILES_H_

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "common/json.h"
#include "formats/gguf_file.h"

namespace ptq {

// The files by name; none for a model that has no tokenizer. They give the token ids that
// llama.cpp gives; what tokenizer.json says beside that (offsets, names of rules) is not in the
// metadata. kUnimplemented naming the kind of tokenizer or pre-tokenizer that is not known here;
// kInvalidArgument for damaged lists.
absl::StatusOr<std::map<std::string, Json>> TokenizerFilesOfGguf(const GgufFile& file);

}  // namespace ptq

#endif  // PTQ_FORMATS_GGUF_TOKENIZER_FILES_H_
