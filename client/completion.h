// Completion scripts for shells, made from the commands and flags themselves.
#ifndef PTQ_CLIENT_COMPLETION_H_
#define PTQ_CLIENT_COMPLETION_H_

#include <CLI/App.hpp>
#include <string>

#include "absl/status/statusor.h"

namespace ptq {

// For "bash", "zsh" or "fish"; kInvalidArgument for another shell. Values come from the options'
// type names: FILE and DIR complete paths, JOB asks `ptq list --quiet`, a|b|c are the choices.
absl::StatusOr<std::string> CompletionScript(const CLI::App& root, const std::string& shell);

}  // namespace ptq

#endif  // PTQ_CLIENT_COMPLETION_H_
