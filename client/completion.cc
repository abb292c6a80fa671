#include "client/completion.h"

#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace ptq {
namespace {

struct Flag {
  std::string name;  // "--bits"
  std::string type;  // "N", "FILE", "a|b", ... ; "" for a switch
  std::string description;
};

struct Command {
  std::string name;
  std::string description;
  std::vector<std::string> arguments;  // their types
  std::vector<Flag> flags;
};

std::vector<Flag> FlagsOf(const CLI::App& app) {
  std::vector<Flag> flags;
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_positional()) continue;
    for (const std::string& name : option->get_lnames()) {
      flags.push_back({"--" + name, option->get_type_size() == 0 ? "" : option->get_type_name(),
                       option->get_description()});
    }
  }
  return flags;
}

std::vector<Command> CommandsOf(const CLI::App& root) {
  std::vector<Command> commands;
  for (const CLI::App* app : root.get_subcommands({})) {
    Command command{app->get_name(), app->get_description(), {}, FlagsOf(*app)};
    for (const CLI::Option* option : app->get_options()) {
      if (option->get_positional()) command.arguments.push_back(option->get_type_name());
    }
    for (const CLI::Option* option : root.get_options()) {
      if (option->check_lname("server")) {
        command.flags.push_back({"--server", option->get_type_name(), option->get_description()});
      }
    }
    commands.push_back(std::move(command));
  }
  return commands;
}

bool IsChoice(const std::string& type) { return type.find('|') != std::string::npos; }
std::string Words(const std::string& choice) { return absl::StrReplaceAll(choice, {{"|", " "}}); }

// The first sentence, safe inside single quotes and zsh's brackets.
std::string Brief(const std::string& description) {
  const std::string sentence = description.substr(0, description.find_first_of(".;"));
  return absl::StrReplaceAll(sentence, {{"'", ""}, {"[", "("}, {"]", ")"}, {":", " -"}, {"`", ""}});
}

std::string NamesOf(const std::vector<Command>& commands) {
  std::vector<std::string> names;
  for (const Command& command : commands) names.push_back(command.name);
  return absl::StrJoin(names, " ");
}

std::string BashValues(const std::string& type) {
  if (IsChoice(type)) return "COMPREPLY=($(compgen -W '" + Words(type) + "' -- \"$cur\"))";
  if (type == "FILE") return "compopt -o filenames; COMPREPLY=($(compgen -f -- \"$cur\"))";
  if (type == "DIR") return "compopt -o filenames; COMPREPLY=($(compgen -d -- \"$cur\"))";
  if (type == "JOB") return "COMPREPLY=($(compgen -W \"$(_ptq_jobs)\" -- \"$cur\"))";
  return "COMPREPLY=()";
}

std::string BashScript(const std::vector<Command>& commands, const std::vector<Flag>& globals) {
  // A flag means the same in every command that has it.
  std::set<std::string> seen;
  std::string values;
  std::string flags_with_values;
  std::string flags;
  std::string arguments;
  for (const Command& command : commands) {
    std::vector<std::string> names;
    for (const Flag& flag : command.flags) {
      names.push_back(flag.name);
      if (flag.type.empty() || !seen.insert(flag.name).second) continue;
      absl::StrAppend(&values, "    ", flag.name, ") ", BashValues(flag.type), "; return ;;\n");
      if (flag.name == "--server") continue;  // has a case of its own
      absl::StrAppend(&flags_with_values, flags_with_values.empty() ? "" : "|", flag.name);
    }
    absl::StrAppend(&flags, "      ", command.name, ") flags='", absl::StrJoin(names, " "),
                    "' ;;\n");
    for (size_t i = 0; i < command.arguments.size(); ++i) {
      absl::StrAppend(&arguments, "    ", command.name, ":", i, ") ",
                      BashValues(command.arguments[i]), " ;;\n");
    }
  }
  std::vector<std::string> global_names;
  for (const Flag& flag : globals) global_names.push_back(flag.name);
  return absl::StrCat(R"sh(# bash completion for ptq:  eval "$(ptq completion bash)"
_ptq_jobs() {
  local name
  ptq ${server:+--server "$server"} list --quiet 2>/dev/null | while read -r name; do
    echo "${name##*/}"
  done
}
_ptq() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
  local command= server= flags= i position=0
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${COMP_WORDS[i]} in
      --server)
        server=${COMP_WORDS[++i]}
        # Readline takes HOST:PORT apart.
        while [[ ${COMP_WORDS[i+1]} == : ]]; do server+=:${COMP_WORDS[i+2]}; ((i += 2)); done
        ;;
      )sh",
                      flags_with_values, R"sh() ((++i)) ;;
      -*) ;;
      *) if [[ -z $command ]]; then command=${COMP_WORDS[i]}; else ((++position)); fi ;;
    esac
  done
  case $prev in
)sh",
                      values, R"sh(  esac
  if [[ $cur == -* ]]; then
    case $command in
)sh",
                      flags, "      *) flags='", absl::StrJoin(global_names, " "), R"sh(' ;;
    esac
    COMPREPLY=($(compgen -W "$flags" -- "$cur"))
    return
  fi
  case $command:$position in
    :*) COMPREPLY=($(compgen -W ')sh",
                      NamesOf(commands), R"sh(' -- "$cur")) ;;
)sh",
                      arguments, R"sh(  esac
}
complete -F _ptq ptq
)sh");
}

std::string ZshAction(const std::string& type) {
  if (IsChoice(type)) return "(" + Words(type) + ")";
  if (type == "FILE") return "_files";
  if (type == "DIR") return "_files -/";
  if (type == "JOB") return "_ptq_jobs";
  return " ";
}

std::string ZshFlag(const Flag& flag) {
  const bool repeatable = flag.name == "--rule" || flag.name == "--label";
  std::string text =
      absl::StrCat("'", repeatable ? "*" : "", flag.name, "[", Brief(flag.description), "]");
  if (!flag.type.empty()) {
    absl::StrAppend(&text, ":", absl::StrReplaceAll(flag.type, {{":", " "}}), ":",
                    ZshAction(flag.type));
  }
  return text + "'";
}

std::string ZshScript(const std::vector<Command>& commands, const std::vector<Flag>& globals) {
  std::string descriptions;
  std::string cases;
  for (const Command& command : commands) {
    absl::StrAppend(&descriptions, "    '", command.name, ":", Brief(command.description), "'\n");
    absl::StrAppend(&cases, "        ", command.name, ")\n          _arguments");
    for (const Flag& flag : command.flags) {
      absl::StrAppend(&cases, " \\\n            ", ZshFlag(flag));
    }
    for (size_t i = 0; i < command.arguments.size(); ++i) {
      absl::StrAppend(&cases, " \\\n            '", i + 1, ":", command.arguments[i], ":",
                      ZshAction(command.arguments[i]), "'");
    }
    absl::StrAppend(&cases, "\n          ;;\n");
  }
  std::string global_flags;
  for (const Flag& flag : globals) absl::StrAppend(&global_flags, "    ", ZshFlag(flag), " \\\n");
  return absl::StrCat(R"sh(#compdef ptq
# zsh completion for ptq:  eval "$(ptq completion zsh)", or save as _ptq in a folder of $fpath
_ptq_jobs() {
  local -a names
  names=(${${(f)"$(ptq ${opt_args[--server]:+--server ${opt_args[--server]}} list --quiet 2>/dev/null)"}##*/})
  compadd -a names
}
_ptq() {
  local context state line
  local -A opt_args
  local -a commands
  commands=(
)sh",
                      descriptions, R"sh(  )
  _arguments -C \
)sh",
                      global_flags, R"sh(    '1: :->command' \
    '*:: :->arguments'
  case $state in
    command) _describe command commands ;;
    arguments)
      case $words[1] in
)sh",
                      cases, R"sh(      esac
      ;;
  esac
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _ptq "$@"
else
  compdef _ptq ptq
fi
)sh");
}

std::string FishValues(const std::string& type) {
  if (type.empty()) return "";
  if (IsChoice(type)) return " -x -a '" + Words(type) + "'";
  if (type == "FILE") return " -r -F";
  if (type == "DIR") return " -x -a '(__fish_complete_directories)'";
  if (type == "JOB") return " -x -a '(__ptq_jobs)'";
  return " -x";
}

std::string FishScript(const std::vector<Command>& commands, const std::vector<Flag>& globals) {
  std::string text = absl::StrCat(R"sh(# fish completion for ptq:  ptq completion fish | source
function __ptq_jobs
    ptq list --quiet 2>/dev/null | string replace -r '.*/' ''
end
complete -c ptq -f
)sh");
  const std::string none = "not __fish_seen_subcommand_from " + NamesOf(commands);
  for (const Flag& flag : globals) {
    absl::StrAppend(&text, "complete -c ptq -n '", none, "' -l ", flag.name.substr(2),
                    FishValues(flag.type), " -d '", Brief(flag.description), "'\n");
  }
  for (const Command& command : commands) {
    const std::string here = "__fish_seen_subcommand_from " + command.name;
    absl::StrAppend(&text, "complete -c ptq -n '", none, "' -a ", command.name, " -d '",
                    Brief(command.description), "'\n");
    for (const Flag& flag : command.flags) {
      absl::StrAppend(&text, "complete -c ptq -n '", here, "' -l ", flag.name.substr(2),
                      FishValues(flag.type), " -d '", Brief(flag.description), "'\n");
    }
    std::set<std::string> types(command.arguments.begin(), command.arguments.end());
    for (const std::string& type : types) {
      const std::string values = FishValues(type);
      if (type == "FILE") {
        absl::StrAppend(&text, "complete -c ptq -n '", here, "' -F\n");
      } else if (values != " -x") {
        absl::StrAppend(&text, "complete -c ptq -n '", here, "'",
                        absl::StrReplaceAll(values, {{" -x", ""}}), "\n");
      }
    }
  }
  return text;
}

}  // namespace

absl::StatusOr<std::string> CompletionScript(const CLI::App& root, const std::string& shell) {
  const std::vector<Command> commands = CommandsOf(root);
  const std::vector<Flag> globals = FlagsOf(root);
  if (shell == "bash") return BashScript(commands, globals);
  if (shell == "zsh") return ZshScript(commands, globals);
  if (shell == "fish") return FishScript(commands, globals);
  return absl::InvalidArgumentError("SHELL: '" + shell + "' is not bash, zsh or fish");
}

}  // namespace ptq
