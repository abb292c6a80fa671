// ptq logs: what the worker said.
#include <memory>

#include "absl/strings/str_format.h"
#include "client/commands/command.h"
#include "client/message_json.h"
#include "client/resource_names.h"
#include "client/text_format.h"

namespace ptq {
namespace {

struct LogFlags {
  std::string job;
  int64_t after_line = 0;
  bool follow = false;
  bool json = false;
};

ExitStatus Run(Session& session, const LogFlags& flags) {
  const auto name = ResolveJobName(flags.job);
  if (!name.ok()) return Fail(session, name.status());
  v1::ReadJobLogsRequest request;
  request.set_name(*name);
  request.set_after_line(flags.after_line);
  request.set_follow(flags.follow);
  std::ostream& out = session.console().out;
  const absl::Status status = session.client().ReadLogs(request, [&](const v1::LogEntry& entry) {
    if (flags.json) {
      out << DumpJson(MessageToJson(entry)) << "\n";
    } else {
      out << FormatLocalTime(ToTime(entry.time())) << "  "
          << absl::StrFormat("%-7s", entry.severity()) << "  " << entry.message() << "\n";
    }
    out << std::flush;
  });
  return status.ok() ? ExitStatus::kDone : Fail(session, status);
}

}  // namespace

void AddLogsCommand(CLI::App& root, CommandLine& line) {
  HelpText help;
  help.synopsis = {"ptq logs JOB [--follow] [--after-line N] [--json]"};
  help.description =
      "Prints the job's log: what its worker said, over all attempts. With --json one object a "
      "line.";
  help.examples = {{"What went wrong?", "ptq logs 1f3a | tail"},
                   {"Stay until the job ends:", "ptq logs 1f3a --follow"}};
  CLI::App& command = AddCommand(root, "logs", "print a job's log", help);
  auto flags = std::make_shared<LogFlags>();
  AddJobArgument(command, flags->job);
  command.add_flag("-f,--follow", flags->follow, "Go on until the job ends.")->group("Selection");
  command.add_option("--after-line", flags->after_line, "Only later lines.")
      ->type_name("N")
      ->capture_default_str()
      ->group("Selection");
  AddJsonFlag(command, flags->json);
  command.callback(
      [&line, flags] { line.run = [flags](Session& session) { return Run(session, *flags); }; });
}

}  // namespace ptq
