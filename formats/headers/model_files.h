// Which files of a folder make up a model, or which .gguf file is one.
#ifndef PTQ_FORMATS_HEADERS_MODEL_FILES_H_
#define PTQ_FORMATS_HEADERS_MODEL_FILES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ptq {

// The .gguf file that `path` means, which is such a file or a folder without safetensors weights;
// "" if there is none. kInvalidArgument if there are several.
absl::StatusOr<std::string> FindGgufFile(const std::string& path);

// The folder of a model that is named by its folder or by a .gguf file.
std::string ModelFolder(const std::string& model);

// A config.json that is larger is none.
inline constexpr int64_t kMaxConfigBytes = 16 << 20;

// Whether a file belongs to a model without being its weights: *.json, tokenizer and chat-template
// files, by the names that are safe within a folder.
bool IsSideFileName(const std::string& name);
// Those files of the folder, without its subfolders. kNotFound if there is no such folder.
absl::StatusOr<std::vector<std::string>> ListSideFiles(const std::string& folder);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_MODEL_FILES_H_
