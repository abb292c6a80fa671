// The command line client: reads the environment, puts the parts together, runs one command.
#include <langinfo.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <clocale>
#include <cstdlib>
#include <iostream>
#include <string>

#include "client/commands/command.h"
#include "client/console.h"
#include "client/interrupts.h"
#include "client/rpc_status.h"
#include "client/server_connection.h"
#include "client/session.h"

namespace ptq {
namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string UsageError(const CLI::App& root, const CLI::ParseError& error) {
  const auto commands = root.get_subcommands();
  if (!commands.empty()) {
    return std::string(error.what()) + "; `ptq " + commands[0]->get_name() +
           " --help` shows the usage";
  }
  const auto words = root.remaining();
  const std::string what =
      words.empty() ? "a command is missing" : "'" + words[0] + "' is not a command";
  return what + "; `ptq --help` lists the commands";
}

int Main(int argc, char** argv) {
  // Numbers stay as the C locale writes them; only the encoding is taken from the environment.
  std::setlocale(LC_CTYPE, "");
  const TerminalEnvironment environment{Environment("TERM"), !Environment("NO_COLOR").empty(),
                                        std::string(::nl_langinfo(CODESET)) == "UTF-8"};
  std::ios::sync_with_stdio(false);
  Console console{std::cout, std::cerr, DetectTerminal(STDOUT_FILENO, environment),
                  DetectTerminal(STDERR_FILENO, environment)};
  CLI::App root;
  CommandLine line;
  BuildCommandLine(root, line);
  try {
    root.parse(argc, argv);
  } catch (const CLI::Success& page) {  // --help, --version
    return root.exit(page, std::cout, std::cerr);
  } catch (const CLI::ParseError& error) {
    std::cerr << "ptq: " << UsageError(root, error) << std::endl;
    return static_cast<int>(ExitStatus::kRefused);
  }
  if (line.needs_server) {
    if (const absl::Status status = ValidateServerAddress(line.server); !status.ok()) {
      std::cerr << "ptq: " << ErrorSentence(status) << std::endl;
      return static_cast<int>(ExitStatus::kRefused);
    }
  }
  InterruptListener interrupts;
  QuantizationClient::Options options;
  options.server = line.server;
  Session session(console, interrupts, MakeStubs(MakeChannel(line.server)), options);
  const ExitStatus status = line.run(session);
  console.out.flush();
  if (!console.out) {
    std::cerr << "ptq: standard output cannot be written; look at the disk or pipe it goes to"
              << std::endl;
    return static_cast<int>(ExitStatus::kError);
  }
  return static_cast<int>(status);
}

}  // namespace
}  // namespace ptq

int main(int argc, char** argv) { return ptq::Main(argc, argv); }
