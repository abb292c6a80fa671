// ptq status, list and capabilities: what the server has and can.
#include <memory>

#include "absl/strings/str_format.h"
#include "client/commands/command.h"
#include "client/message_json.h"
#include "client/report_text.h"
#include "client/resource_names.h"
#include "client/text_format.h"

namespace ptq {
namespace {

struct JobQuery {
  std::string job;
  bool json = false;
};

struct ListFlags {
  std::string filter;
  int64_t limit = 0;
  bool quiet = false;
  bool json = false;
};

ExitStatus RunStatus(Session& session, const JobQuery& flags) {
  const auto name = ResolveJobName(flags.job);
  if (!name.ok()) return Fail(session, name.status());
  const auto job = session.client().GetJob(*name);
  if (!job.ok()) return Fail(session, job.status());
  session.console().out << (flags.json ? DumpJsonPretty(MessageToJson(*job)) : JobDetails(*job))
                        << std::flush;
  return ExitStatus::kDone;
}

std::string JobTable(const std::vector<v1::QuantizationJob>& jobs) {
  std::vector<std::vector<std::string>> rows = {{"JOB", "STATE", "BLOCKS", "WHAT", "CREATED"}};
  for (const v1::QuantizationJob& job : jobs) {
    const v1::Progress& progress = job.progress();
    rows.push_back({ShortName(job.name()), v1::QuantizationJob::State_Name(job.state()),
                    progress.blocks_total() > 0
                        ? absl::StrFormat("%d/%d", progress.blocks_done(), progress.blocks_total())
                        : "-",
                    SpecSummary(job.spec()), FormatLocalTime(ToTime(job.create_time()))});
  }
  return FormatTable(rows);
}

ExitStatus RunList(Session& session, const ListFlags& flags) {
  Console& console = session.console();
  const auto jobs = session.client().ListJobs(kDefaultTenant, flags.filter, flags.limit);
  if (!jobs.ok()) return Fail(session, jobs.status());
  if (flags.json) {
    Json array = Json::array();
    for (const v1::QuantizationJob& job : *jobs) array.push_back(MessageToJson(job));
    console.out << DumpJsonPretty(array);
  } else if (flags.quiet) {
    for (const v1::QuantizationJob& job : *jobs) console.out << job.name() << "\n";
  } else if (jobs->empty()) {
    console.err << "No jobs." << std::endl;
  } else {
    console.out << JobTable(*jobs);
  }
  console.out << std::flush;
  return ExitStatus::kDone;
}

ExitStatus RunCapabilities(Session& session, bool json) {
  const auto capabilities = session.client().GetCapabilities();
  if (!capabilities.ok()) return Fail(session, capabilities.status());
  session.console().out << (json ? DumpJsonPretty(MessageToJson(*capabilities))
                                 : CapabilitiesDetails(*capabilities))
                        << std::flush;
  return ExitStatus::kDone;
}

}  // namespace

void AddStatusCommand(CLI::App& root, CommandLine& line) {
  HelpText help;
  help.synopsis = {"ptq status JOB [--json]"};
  help.description =
      "Shows a job as it is now: state, progress, error, times. The exit status is 0 for any job "
      "that the server knows, whatever its state.";
  help.examples = {{"Its state alone:", "ptq status 1f3a --json | jq -r .state"}};
  CLI::App& command = AddCommand(root, "status", "show a job as it is now", help);
  auto flags = std::make_shared<JobQuery>();
  AddJobArgument(command, flags->job);
  AddJsonFlag(command, flags->json);
  command.callback([&line, flags] {
    line.run = [flags](Session& session) { return RunStatus(session, *flags); };
  });
}

void AddListCommand(CLI::App& root, CommandLine& line) {
  HelpText help;
  help.synopsis = {"ptq list [--filter EXPRESSION] [--limit N] [--quiet | --json]"};
  help.description =
      "Lists jobs, newest first. A filter is a list of comparisons of state, labels.KEY and "
      "create_time joined by AND.";
  help.examples = {{"What runs now:", "ptq list --filter 'state = RUNNING'"},
                   {"One team's jobs of this year:",
                    "ptq list --filter 'labels.team = \"nlp\" AND create_time > "
                    "\"2026-01-01T00:00:00Z\"'"}};
  CLI::App& command = AddCommand(root, "list", "list jobs", help);
  auto flags = std::make_shared<ListFlags>();
  command.add_option("--filter", flags->filter, "Only jobs for which the expression holds.")
      ->type_name("EXPRESSION")
      ->group("Selection");
  command.add_option("--limit", flags->limit, "At most this many; 0: all.")
      ->type_name("N")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber.description(""))
      ->group("Selection");
  CLI::Option* quiet =
      command.add_flag("-q,--quiet", flags->quiet, "Print full names only.")->group("Output");
  AddJsonFlag(command, flags->json);
  quiet->excludes("--json");
  command.callback([&line, flags] {
    line.run = [flags](Session& session) { return RunList(session, *flags); };
  });
}

void AddCapabilitiesCommand(CLI::App& root, CommandLine& line) {
  HelpText help;
  help.synopsis = {"ptq capabilities [--json]"};
  help.description = "Shows what the server can do: algorithms, model types, formats, limits.";
  help.examples = {{"Is the server there?", "ptq capabilities >/dev/null && echo yes"}};
  CLI::App& command = AddCommand(root, "capabilities", "show what the server can do", help);
  auto json = std::make_shared<bool>(false);
  AddJsonFlag(command, *json);
  command.callback([&line, json] {
    line.run = [json](Session& session) { return RunCapabilities(session, *json); };
  });
}

}  // namespace ptq
