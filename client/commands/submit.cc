// ptq submit: a job without waiting for it.
#include <memory>

#include "client/commands/command.h"
#include "client/job_flags.h"
#include "client/job_submission.h"
#include "client/message_json.h"
#include "client/progress_display.h"
#include "client/rpc_status.h"

namespace ptq {
namespace {

struct SubmitFlags {
  JobFlags job;
  bool json = false;
};

ExitStatus Run(Session& session, const SubmitFlags& flags) {
  Console& console = session.console();
  InterruptListener::Handler handler(session.interrupts(),
                                     [&session] { session.canceller().Cancel(); });
  TransferDisplay transfers(console.err, console.err_terminal);
  const auto job = SubmitJob(session.client(), flags.job, transfers);
  if (!job.ok()) {
    transfers.OnStop();
    if (session.canceller().IsCancelled()) {
      console.err << "Interrupted; nothing was submitted. What was uploaded is kept: the same "
                     "command continues there."
                  << std::endl;
    }
    return Fail(session, job.status());
  }
  if (flags.job.validate_only) {
    console.err << "The job is valid; nothing was submitted." << std::endl;
    if (!flags.json) return ExitStatus::kDone;
    const auto spec = JobSpecWithPaths(*job, flags.job);
    if (!spec.ok()) return Fail(session, LocalError(spec.status()));
    console.out << DumpJsonPretty(*spec) << std::flush;
    return ExitStatus::kDone;
  }
  if (flags.json) {
    console.out << DumpJsonPretty(MessageToJson(*job)) << std::flush;
  } else {
    console.out << job->name() << std::endl;
  }
  return ExitStatus::kDone;
}

}  // namespace

void AddSubmitCommand(CLI::App& root, CommandLine& line) {
  HelpText help;
  help.synopsis = {"ptq submit MODEL_DIR [--calibration FILE] [FLAG]..."};
  help.description =
      "Uploads what the server lacks, submits a job and prints its full name, alone, on standard "
      "output; everything else goes to standard error.\n\n"
      "With --server-path the paths lie on the server and nothing is uploaded. With "
      "--validate-only the inputs are uploaded and checked, but no job is made; --json then prints "
      "job.json, which `ptq-worker run --spec job.json` takes.";
  help.examples = {
      {"Keep the name for later:", "job=$(ptq submit ./model --calibration text.jsonl)"},
      {"A model that lies on the server:",
       "ptq submit /models/llama --server-path --calibration /models/text.jsonl"},
      {"The same job however often a pipeline retries:",
       "ptq submit ./model --algorithm rtn --request-id 6f1c1c52-6a3e-4c1f-9d0b-0d6c1d1c8a11"}};
  CLI::App& command = AddCommand(root, "submit", "submit a job and print its name", help);
  auto flags = std::make_shared<SubmitFlags>();
  AddJobFlags(command, flags->job);
  AddJsonFlag(command, flags->json);
  command.callback(
      [&line, flags] { line.run = [flags](Session& session) { return Run(session, *flags); }; });
}

}  // namespace ptq
