#include "formats/headers/model_files.h"

#include "absl/strings/match.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

constexpr char kGgufSuffix[] = ".gguf";

// Tokenizers that are not JSON, and chat templates.
bool IsTokenizerName(const std::string& name) {
  for (const char* known :
       {"tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "merges.txt"}) {
    if (name == known) return true;
  }
  return absl::EndsWith(name, ".tiktoken") || absl::EndsWith(name, ".jinja");
}

}  // namespace

absl::StatusOr<std::string> FindGgufFile(const std::string& path) {
  if (!IsDirectory(path)) return absl::EndsWith(path, kGgufSuffix) ? path : "";
  PTQ_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(path));
  std::vector<std::string> found;
  for (const std::string& name : names) {
    if (name == "model.safetensors.index.json" || name == "model.safetensors") return "";
    if (absl::EndsWith(name, kGgufSuffix)) found.push_back(name);
  }
  if (found.size() > 1) {
    return absl::InvalidArgumentError("the folder has several .gguf files (" + ListSome(found, 3) +
                                      "): name one of them");
  }
  return found.empty() ? "" : JoinPath(path, found.front());
}

std::string ModelFolder(const std::string& model) {
  if (!absl::EndsWith(model, kGgufSuffix) || IsDirectory(model)) return model;
  const std::string folder = DirName(model);
  return folder.empty() ? "." : folder;
}

bool IsSideFileName(const std::string& name) {
  return IsSafeRelativePath(name) && name[0] != '.' &&
         (absl::EndsWith(name, ".json") || IsTokenizerName(name));
}

absl::StatusOr<std::vector<std::string>> ListSideFiles(const std::string& folder) {
  PTQ_ASSIGN_OR_RETURN(std::vector<std::string> names, ListDirectory(folder));
  std::erase_if(names, [&folder](const std::string& name) {
    return !IsSideFileName(name) || IsDirectory(JoinPath(folder, name));
  });
  return names;
}

}  // namespace ptq
