// What the commands share: how they are declared, and how they report.
#ifndef PTQ_CLIENT_COMMANDS_COMMAND_H_
#define PTQ_CLIENT_COMMANDS_COMMAND_H_

#include <CLI/App.hpp>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "client/exit_status.h"
#include "client/help_formatter.h"
#include "client/session.h"

namespace ptq {

// What a parsed command line asks for.
struct CommandLine {
  std::string server;  // HOST:PORT
  bool needs_server = true;
  std::function<ExitStatus(Session&)> run;  // of the command that was given
};

// A subcommand with its manual page and --help.
CLI::App& AddCommand(CLI::App& root, const std::string& name, const std::string& summary,
                     HelpText help);

void AddJsonFlag(CLI::App& command, bool& json);
void AddJobArgument(CLI::App& command, std::string& job);

// Prints "ptq: ..." on standard error, unless the user interrupted, and returns the exit status.
ExitStatus Fail(Session& session, const absl::Status& status);

// One subcommand each (or a few of one kind). All leave their work in `line.run`.
void AddQuantizeCommand(CLI::App& root, CommandLine& line);
void AddConvertCommand(CLI::App& root, CommandLine& line);
void AddSubmitCommand(CLI::App& root, CommandLine& line);
void AddWatchCommand(CLI::App& root, CommandLine& line);
void AddStatusCommand(CLI::App& root, CommandLine& line);
void AddListCommand(CLI::App& root, CommandLine& line);
void AddCancelCommand(CLI::App& root, CommandLine& line);
void AddResumeCommand(CLI::App& root, CommandLine& line);
void AddDeleteCommand(CLI::App& root, CommandLine& line);
void AddLogsCommand(CLI::App& root, CommandLine& line);
void AddReportCommand(CLI::App& root, CommandLine& line);
void AddDownloadCommand(CLI::App& root, CommandLine& line);
void AddCapabilitiesCommand(CLI::App& root, CommandLine& line);
void AddCompletionCommand(CLI::App& root, CommandLine& line);
void AddVersionCommand(CLI::App& root, CommandLine& line);

// The whole command line: global options and every command. `line` must outlive the parse, and
// `root` the command's run.
void BuildCommandLine(CLI::App& root, CommandLine& line);

}  // namespace ptq

#endif  // PTQ_CLIENT_COMMANDS_COMMAND_H_
