// ptq watch: a job's progress until its end.
#include <memory>

#include "client/commands/command.h"
#include "client/commands/job_following.h"
#include "client/resource_names.h"

namespace ptq {
namespace {

struct WatchFlags {
  std::string job;
  bool json = false;
};

ExitStatus Run(Session& session, const WatchFlags& flags) {
  Console& console = session.console();
  const auto name = ResolveJobName(flags.job);
  if (!name.ok()) return Fail(session, name.status());
  InterruptListener::Handler handler(session.interrupts(),
                                     [&session] { session.canceller().Cancel(); });
  const auto job = FollowJob(session, *name, {&console.out, console.out_terminal, flags.json});
  if (!job.ok()) return Fail(session, job.status());
  const ExitStatus end = ReportEnd(session, *job);
  if (end == ExitStatus::kDone && !flags.json) {
    console.out << SuccessText(session, *job) << "Get the result with `ptq download "
                << ShortName(*name) << " DIR`." << std::endl;
  }
  return end;
}

}  // namespace

void AddWatchCommand(CLI::App& root, CommandLine& line) {
  HelpText help;
  help.synopsis = {"ptq watch JOB [--json]"};
  help.description =
      "Shows a job's progress until it ends: a bar that is redrawn in place on a terminal, one "
      "line an event elsewhere. A broken connection is taken up again where it broke; after 60 "
      "seconds without the server the command gives up, while the job goes on.\n\n"
      "Ctrl-C detaches, a second Ctrl-C cancels the job. The exit status is that of the job's "
      "end.\n\n"
      "With --json each event is one object a line: sequence, time, type (snapshot, block) and the "
      "type's own fields.";
  help.examples = {{"Watch, then download:", "ptq watch 1f3a && ptq download 1f3a ./out"},
                   {"The blocks' losses as they come:",
                    "ptq watch 1f3a --json | jq 'select(.type==\"block\") | .loss_best'"}};
  help.ends_with_job = true;
  CLI::App& command = AddCommand(root, "watch", "show a job's progress until it ends", help);
  auto flags = std::make_shared<WatchFlags>();
  AddJobArgument(command, flags->job);
  AddJsonFlag(command, flags->json);
  command.callback(
      [&line, flags] { line.run = [flags](Session& session) { return Run(session, *flags); }; });
}

}  // namespace ptq
