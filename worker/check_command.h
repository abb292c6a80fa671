// ptq-worker check: which loaders load a folder.
#ifndef PTQ_WORKER_CHECK_COMMAND_H_
#define PTQ_WORKER_CHECK_COMMAND_H_

#include <string>
#include <vector>

#include "formats/headers/loader_rules/loader_rules.h"

namespace ptq {

struct CheckOptions {
  std::string path;             // a folder, or a .gguf file
  std::vector<Loader> loaders;  // empty: all
  bool json = false;
};

// "transformers  loads (needs torchao >= 0.15)" and so on, problems and remarks below each.
std::string FolderCheckText(const std::string& path, const FolderCheck& check,
                            const std::vector<Loader>& loaders);

// Prints the verdicts of `loaders` on standard output. Returns the exit status: 0 if each of them
// loads the folder (of all, if none is named: one does), 1 if not, 2 if there is nothing to judge,
// which standard error says.
int RunCheck(const CheckOptions& options);

}  // namespace ptq

#endif  // PTQ_WORKER_CHECK_COMMAND_H_
