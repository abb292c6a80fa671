#include "client/commands/command.h"

#include <memory>
#include <utility>

#include "client/rpc_status.h"

namespace ptq {
namespace {

constexpr char kDefaultServer[] = "127.0.0.1:7433";

}  // namespace

CLI::App& AddCommand(CLI::App& root, const std::string& name, const std::string& summary,
                     HelpText help) {
  CLI::App* command = root.add_subcommand(name, summary);
  command->formatter(std::make_shared<HelpFormatter>(std::move(help)));
  command->set_help_flag("-h,--help", "Show this page.");
  // `ptq status JOB --server HOST:PORT` is as good as `ptq --server HOST:PORT status JOB`.
  command->fallthrough();
  return *command;
}

void AddJsonFlag(CLI::App& command, bool& json) {
  command.add_flag("--json", json, "Print JSON for scripts instead of text for people.")
      ->group("Output");
}

void AddJobArgument(CLI::App& command, std::string& job) {
  command.add_option("JOB", job, "The job's full name, or its last part.")
      ->type_name("JOB")
      ->required();
}

ExitStatus Fail(Session& session, const absl::Status& status) {
  const ExitStatus exit_status = ExitStatusFor(status);
  if (exit_status != ExitStatus::kInterrupted) {
    session.console().err << "ptq: " << ErrorSentence(status) << std::endl;
  }
  return exit_status;
}

void BuildCommandLine(CLI::App& root, CommandLine& line) {
  root.name("ptq");
  root.description("post-training quantization as a service: the command line");
  HelpText help;
  help.synopsis = {"ptq [--server HOST:PORT] COMMAND [ARGUMENT]...", "ptq COMMAND --help"};
  help.description =
      "Sends a Hugging Face checkpoint and calibration text to a ptqd server, which quantizes the "
      "weights block by block, and brings back the result with a report on what it cost in "
      "accuracy.\n\n"
      "`ptq quantize` does everything in one go, and `ptq convert` writes a quantized model in "
      "other formats. The other commands are its steps: submit a job, watch it, download its "
      "result. A job runs on the server: it survives Ctrl-C, a broken connection and a restart of "
      "the server.\n\n"
      "The server is --server, else the environment variable PTQ_SERVER, else 127.0.0.1:7433.";
  help.examples = {
      {"Quantize a model to 4 bits with Auto-Round and measure what it cost:",
       "ptq quantize ./model --calibration text.jsonl --evaluation test.txt --output ./model-w4"},
      {"The same in steps:",
       "job=$(ptq submit ./model --calibration text.jsonl); ptq watch $job; ptq download $job out"},
      {"Completion of commands, flags and jobs in bash:", "eval \"$(ptq completion bash)\""}};
  root.formatter(std::make_shared<HelpFormatter>(std::move(help)));
  root.set_help_flag("-h,--help", "Show this page.");
  root.set_version_flag("--version", "ptq " PTQ_VERSION, "Show the version.");
  line.server = kDefaultServer;
  root.add_option("--server", line.server, "Address of the server (environment: PTQ_SERVER).")
      ->type_name("HOST:PORT")
      ->envname("PTQ_SERVER")
      ->capture_default_str();
  root.require_subcommand(1);
  AddQuantizeCommand(root, line);
  AddConvertCommand(root, line);
  AddSubmitCommand(root, line);
  AddWatchCommand(root, line);
  AddStatusCommand(root, line);
  AddListCommand(root, line);
  AddCancelCommand(root, line);
  AddResumeCommand(root, line);
  AddLogsCommand(root, line);
  AddReportCommand(root, line);
  AddDownloadCommand(root, line);
  AddDeleteCommand(root, line);
  AddCapabilitiesCommand(root, line);
  AddCompletionCommand(root, line);
  AddVersionCommand(root, line);
}

}  // namespace ptq
