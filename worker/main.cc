// ptq-worker: the numeric engine. One job or conversion in one process.
#include <malloc.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/cancellation.h"
#include "common/logging.h"
#include "common/status_util.h"
#include "worker/check_command.h"
#include "worker/convert.h"
#include "worker/device.h"
#include "worker/engine_version.h"
#include "worker/event_writer.h"
#include "worker/run_job.h"
#include "worker/spec/job_spec.h"
#include "worker/stop_signals.h"

namespace {

// Five seconds is the promise, one of them for whoever waits for us.
constexpr std::chrono::milliseconds kStopGrace(4000);

// libgomp's threads spin at every barrier for milliseconds before they sleep, which on cores shared
// with other processes takes most of the time (measured beside a compiler: 9.0 s against 2.9 s for
// one small job). It reads its settings when it is loaded, so the program starts itself once more.
void LimitSpinning(char** argv) {
  if (::getenv("GOMP_SPINCOUNT") != nullptr || ::getenv("OMP_WAIT_POLICY") != nullptr) return;
  ::setenv("GOMP_SPINCOUNT", "20000", /*overwrite=*/0);
  ::execv("/proc/self/exe", argv);  // returns only if it failed: then go on as we are
}

}  // namespace

int main(int argc, char** argv) {
  LimitSpinning(argv);
  CLI::App app{
      "The numeric engine of ptqd: quantizes one model as a job spec says.\n"
      "Events go to standard output, one JSON object a line; the log goes to standard error."};
  app.name("ptq-worker");
  app.set_version_flag("--version", std::string("ptq-worker ") + ptq::EngineVersion());
  app.require_subcommand(1);
  app.footer(
      "Exit status: 0 done, 1 the job failed, 2 the spec or what it names can't be used (or no\n"
      "format that was asked for can hold the model),\n"
      "143 stopped by SIGTERM or SIGINT: the same command continues after the last finished "
      "block.");
  ptq::RunOptions options;
  bool verbose = false;
  CLI::App* run = app.add_subcommand("run", "Run a job, or continue one in the same folder");
  run->add_option("--spec", options.spec_path,
                  "The job: a JSON file, as `ptq submit "
                  "--validate-only --json` prints it")
      ->required();
  run->add_option("--output", options.output,
                  "Folder of the result: absent, empty, or the same job's")
      ->required();
  run->add_option("--cache-dir", options.cache_dir,
                  "Folder in which evaluations of original models are kept between jobs");
  run->add_flag("--verbose", verbose, "Log more");
  ptq::ConvertOptions conversion;
  std::string formats;
  CLI::App* convert = app.add_subcommand(
      "convert", "Write a quantized model in other formats; nothing is quantized again");
  convert
      ->add_option("--from", conversion.from,
                   "Folder of a quantized model, of whatever program: affine (torchao), "
                   "compressed-tensors, gptq, awq, auto-round or gguf; or a .gguf file")
      ->required();
  convert
      ->add_option("--format", formats,
                   "One or several with commas, each of which then gets a folder of its name: " +
                       absl::StrJoin(ptq::kOutputFormatNames, ", "))
      ->required();
  convert->add_option("--output", conversion.output, "Folder of the result: absent or empty")
      ->required();
  convert->add_option("--config", conversion.config,
                      "Of a .gguf file: folder of the original config.json and tokenizer, where "
                      "they don't lie beside it; without them they are made of its metadata");
  convert->add_flag("--verbose", verbose, "Log more");
  ptq::CheckOptions check_options;
  CLI::App* check = app.add_subcommand(
      "check", "Say which loaders load a folder, by their rules over headers and JSON");
  check->footer("Exit status: 0 it loads, 1 it does not, 2 there is no model to judge.");
  check->add_option("DIR", check_options.path, "Folder of a quantized model, or a .gguf file")
      ->required();
  std::vector<std::string> loaders;
  check
      ->add_option("--for", loaders,
                   "A loader that must load it; repeatable. Default: say it of all, one suffices.")
      ->type_name(absl::StrJoin(ptq::kLoaderNames, "|"))
      ->check(CLI::IsMember(
                  std::vector<std::string>(ptq::kLoaderNames.begin(), ptq::kLoaderNames.end()))
                  .description(""))
      ->allow_extra_args(false);
  check->add_flag("--json", check_options.json, "Print the verdicts as JSON");
  try {
    app.parse(argc, argv);
    if (convert->parsed()) {
      auto parsed = ptq::ParseOutputFormats(absl::StrSplit(formats, ','));
      if (!parsed.ok()) throw CLI::ValidationError("--format", ptq::Message(parsed.status()));
      conversion.formats = *std::move(parsed);
    }
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? ptq::kExitDone : ptq::kExitBadSpec;
  }
  if (check->parsed()) {
    for (const std::string& loader : loaders) {
      check_options.loaders.push_back(*ptq::ParseLoader(loader));
    }
    return ptq::RunCheck(check_options);
  }
  if (verbose) ptq::SetMinimumLogSeverity(ptq::LogSeverity::kDebug);

  // cuBLAS repeats its sums only with workspaces of its own; read when its first handle is made.
  ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  // Both outlive every thread, the signals' detached one included.
  static ptq::CancellationToken cancel;
  static ptq::EventWriter events(STDOUT_FILENO, [] { cancel.Cancel(); });
  ptq::StopOnSignals(&cancel, kStopGrace, [] {
    ptq::JobEvent event;
    event.type = ptq::JobEvent::Type::kCancelled;
    events.TryWrite(std::move(event));
  });
  ptq::UseDeterministicAlgorithms();
  return convert->parsed() ? ptq::RunConvert(conversion, events, cancel)
                           : ptq::RunJob(options, events, cancel);
}
