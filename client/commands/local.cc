// ptq completion and version: what needs no server.
#include <memory>

#include "client/commands/command.h"
#include "client/completion.h"
#include "common/json.h"

namespace ptq {

void AddCompletionCommand(CLI::App& root, CommandLine& line) {
  HelpText help;
  help.synopsis = {"ptq completion bash|zsh|fish"};
  help.description =
      "Prints a script that completes commands, flags, their values and the names of jobs.";
  help.examples = {{"bash, in ~/.bashrc:", "eval \"$(ptq completion bash)\""},
                   {"zsh, in ~/.zshrc after compinit:", "eval \"$(ptq completion zsh)\""},
                   {"fish:", "ptq completion fish > ~/.config/fish/completions/ptq.fish"}};
  CLI::App& command = AddCommand(root, "completion", "print a shell's completion script", help);
  auto shell = std::make_shared<std::string>();
  command.add_option("SHELL", *shell, "bash, zsh or fish.")->type_name("bash|zsh|fish")->required();
  command.callback([&line, &root, shell] {
    line.needs_server = false;
    line.run = [&root, shell](Session& session) {
      const auto script = CompletionScript(root, *shell);
      if (!script.ok()) return Fail(session, script.status());
      session.console().out << *script << std::flush;
      return ExitStatus::kDone;
    };
  });
}

void AddVersionCommand(CLI::App& root, CommandLine& line) {
  HelpText help;
  help.synopsis = {"ptq version [--json]"};
  help.description = "Prints this program's version. `ptq capabilities` shows the server's.";
  CLI::App& command = AddCommand(root, "version", "print the version", help);
  auto json = std::make_shared<bool>(false);
  AddJsonFlag(command, *json);
  command.callback([&line, json] {
    line.needs_server = false;
    line.run = [json](Session& session) {
      if (*json) {
        session.console().out << DumpJsonPretty(Json{{"version", PTQ_VERSION}}) << std::flush;
      } else {
        session.console().out << "ptq " PTQ_VERSION << std::endl;
      }
      return ExitStatus::kDone;
    };
  });
}

}  // namespace ptq
