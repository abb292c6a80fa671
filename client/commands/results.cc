// ptq report and download: what a job leaves behind.
#include <memory>

#include "client/commands/command.h"
#include "client/downloader.h"
#include "client/output_folder.h"
#include "client/progress_display.h"
#include "client/report_text.h"
#include "client/resource_names.h"

namespace ptq {
namespace {

struct ReportFlags {
  std::string job;
  std::string html;
  bool json = false;
};

struct DownloadFlags {
  std::string job;
  std::string folder;
  bool json = false;
};

ExitStatus RunReport(Session& session, const ReportFlags& flags) {
  Console& console = session.console();
  const auto name = ResolveJobName(flags.job);
  if (!name.ok()) return Fail(session, name.status());
  InterruptListener::Handler handler(session.interrupts(),
                                     [&session] { session.canceller().Cancel(); });
  const auto report = session.client().GetReport(*name);
  if (!report.ok()) return Fail(session, report.status());
  if (!flags.html.empty()) {
    if (report->report_html().hash().empty()) {
      return Fail(session, absl::FailedPreconditionError(
                               "the job's result has no HTML report; `ptq report " +
                               ShortName(*name) + "` shows the figures"));
    }
    TransferDisplay transfers(console.err, console.err_terminal);
    Downloader downloader(session.client(), transfers);
    const absl::Status status =
        downloader.DownloadBlob(ParentOf(*name), report->report_html(), flags.html);
    if (!status.ok()) {
      transfers.OnStop();
      return Fail(session, status);
    }
  }
  if (flags.json) {
    // The file as it lies in the result, to the byte.
    console.out << report->report_json() << std::flush;
  } else if (flags.html.empty()) {
    const auto json = ParseJson(report->report_json());
    if (!json.ok()) return Fail(session, LocalError(json.status()));
    console.out << ReportDetails(*json) << std::flush;
  }
  return ExitStatus::kDone;
}

ExitStatus RunDownload(Session& session, const DownloadFlags& flags) {
  Console& console = session.console();
  const auto name = ResolveJobName(flags.job);
  if (!name.ok()) return Fail(session, name.status());
  if (absl::Status status = CheckOutputFolder(flags.folder, *name); !status.ok()) {
    return Fail(session, status);
  }
  InterruptListener::Handler handler(session.interrupts(),
                                     [&session] { session.canceller().Cancel(); });
  TransferDisplay transfers(console.err, console.err_terminal);
  Downloader downloader(session.client(), transfers);
  const absl::Status status = downloader.DownloadJob(*name, flags.folder);
  if (!status.ok()) {
    transfers.OnStop();
    if (session.canceller().IsCancelled()) {
      console.err << "Interrupted; the same command continues the download." << std::endl;
    }
    return Fail(session, status);
  }
  if (flags.json) {
    console.out << DumpJsonPretty(Json{{"name", *name}, {"output", flags.folder}}) << std::flush;
  }
  return ExitStatus::kDone;
}

}  // namespace

void AddReportCommand(CLI::App& root, CommandLine& line) {
  HelpText help;
  help.synopsis = {"ptq report JOB [--html FILE] [--json]"};
  help.description =
      "Shows what a job's quantization cost: perplexity, KL divergence and top-1 agreement before "
      "and after, the blocks' losses, the layers with the largest errors, times, warnings.\n\n"
      "--json prints report.json as it lies in the result, to the byte. --html saves the report "
      "as one page with plots, which needs no network.";
  help.examples = {{"One figure:", "ptq report 1f3a --json | jq .evaluation.quantized.mean_kld"},
                   {"The page with the plots:", "ptq report 1f3a --html report.html"}};
  CLI::App& command = AddCommand(root, "report", "show what a quantization cost", help);
  auto flags = std::make_shared<ReportFlags>();
  AddJobArgument(command, flags->job);
  command.add_option("--html", flags->html, "Save the HTML report as this file.")
      ->type_name("FILE")
      ->group("Output");
  AddJsonFlag(command, flags->json);
  command.callback([&line, flags] {
    line.run = [flags](Session& session) { return RunReport(session, *flags); };
  });
}

void AddDownloadCommand(CLI::App& root, CommandLine& line) {
  HelpText help;
  help.synopsis = {"ptq download JOB DIR [--json]"};
  help.description =
      "Downloads the result of a job that succeeded. Every file is checked against its digest and "
      "gets its name only when it is complete. An interrupted download continues when the same "
      "command runs again.";
  help.examples = {{"", "ptq download 1f3a ./model-w4"}};
  CLI::App& command = AddCommand(root, "download", "download a job's result", help);
  auto flags = std::make_shared<DownloadFlags>();
  AddJobArgument(command, flags->job);
  command
      .add_option("DIR", flags->folder,
                  "A new or an empty folder, or one that holds a part of this job's result.")
      ->type_name("DIR")
      ->required();
  AddJsonFlag(command, flags->json);
  command.callback([&line, flags] {
    line.run = [flags](Session& session) { return RunDownload(session, *flags); };
  });
}

}  // namespace ptq
