// ptq cancel, resume and delete: what changes a job.
#include <functional>
#include <memory>

#include "client/commands/command.h"
#include "client/message_json.h"
#include "client/resource_names.h"

namespace ptq {
namespace {

struct ActionFlags {
  std::string job;
  bool json = false;
};

// What is done to a job, and what is then said: JSON on standard output, or a sentence.
struct Action {
  std::function<absl::StatusOr<Json>(QuantizationClient&, const std::string& name)> perform;
  std::function<std::string(const std::string& short_name)> sentence;
};

ExitStatus Run(Session& session, const ActionFlags& flags, const Action& action) {
  const auto name = ResolveJobName(flags.job);
  if (!name.ok()) return Fail(session, name.status());
  const auto json = action.perform(session.client(), *name);
  if (!json.ok()) return Fail(session, json.status());
  if (flags.json) {
    session.console().out << DumpJsonPretty(*json) << std::flush;
  } else {
    session.console().err << action.sentence(ShortName(*name)) << std::endl;
  }
  return ExitStatus::kDone;
}

void AddAction(CLI::App& command, CommandLine& line, Action action) {
  auto flags = std::make_shared<ActionFlags>();
  AddJobArgument(command, flags->job);
  AddJsonFlag(command, flags->json);
  command.callback([&line, flags, action] {
    line.run = [flags, action](Session& session) { return Run(session, *flags, action); };
  });
}

}  // namespace

void AddCancelCommand(CLI::App& root, CommandLine& line) {
  HelpText help;
  help.synopsis = {"ptq cancel JOB [--json]"};
  help.description =
      "Asks the server to stop a job. It is CANCELLING at once and CANCELLED within seconds; its "
      "finished blocks are kept, so that `ptq resume` can continue it. A job that has ended cannot "
      "be cancelled. With --json the job is printed.";
  help.examples = {{"Cancel and wait until it has stopped:", "ptq cancel 1f3a; ptq watch 1f3a"}};
  CLI::App& command = AddCommand(root, "cancel", "stop a job", help);
  AddAction(command, line,
            {[](QuantizationClient& client, const std::string& name) -> absl::StatusOr<Json> {
               if (absl::Status status = client.CancelJob(name); !status.ok()) return status;
               const auto job = client.GetJob(name);
               if (!job.ok()) return job.status();
               return MessageToJson(*job);
             },
             [](const std::string& name) { return "Cancelling " + name + "."; }});
}

void AddResumeCommand(CLI::App& root, CommandLine& line) {
  HelpText help;
  help.synopsis = {"ptq resume JOB [--json]"};
  help.description =
      "Queues a failed, cancelled or paused job again. It continues after its last finished block, "
      "and its result is the same as if it had never stopped. With --json the job is printed.";
  help.examples = {{"After disk space was made:", "ptq resume 1f3a && ptq watch 1f3a"}};
  CLI::App& command = AddCommand(root, "resume", "continue a job that stopped", help);
  AddAction(command, line,
            {[](QuantizationClient& client, const std::string& name) -> absl::StatusOr<Json> {
               const auto job = client.ResumeJob(name);
               if (!job.ok()) return job.status();
               return MessageToJson(*job);
             },
             [](const std::string& name) {
               return "Queued " + name + " again; `ptq watch " + name + "` shows its progress.";
             }});
}

void AddDeleteCommand(CLI::App& root, CommandLine& line) {
  HelpText help;
  help.synopsis = {"ptq delete JOB [--json]"};
  help.description =
      "Removes a job that has ended, with its result, its log and its report. A running job must "
      "be cancelled first.";
  help.examples = {{"Remove all failed jobs:",
                    "ptq list -q --filter 'state = FAILED' | xargs -r -n1 ptq delete"}};
  CLI::App& command = AddCommand(root, "delete", "remove a job and its result", help);
  AddAction(command, line,
            {[](QuantizationClient& client, const std::string& name) -> absl::StatusOr<Json> {
               if (absl::Status status = client.DeleteJob(name); !status.ok()) return status;
               return Json{{"name", name}, {"deleted", true}};
             },
             [](const std::string& name) { return "Deleted " + name + "."; }});
}

}  // namespace ptq
