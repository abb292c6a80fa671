// ptq quantize and ptq convert: upload, submit, watch and download in one go.
#include <memory>

#include "client/commands/command.h"
#include "client/commands/job_following.h"
#include "client/downloader.h"
#include "client/job_flags.h"
#include "client/job_submission.h"
#include "client/message_json.h"
#include "client/output_folder.h"
#include "client/progress_display.h"
#include "client/resource_names.h"
#include "client/rpc_status.h"

namespace ptq {
namespace {

struct WholeJobFlags {
  JobFlags job;
  std::string output;
  bool json = false;
};

absl::Status CheckOutput(const WholeJobFlags& flags) {
  if (flags.job.validate_only) return absl::OkStatus();
  const auto partial = PartialDownloadIn(flags.output);
  if (!partial.ok()) return partial.status();
  // A repeated request id gives the same job, whose partial download this may be.
  if (partial->empty() || !flags.job.request_id.empty()) return absl::OkStatus();
  return CheckOutputFolder(flags.output, "");
}

ExitStatus Run(Session& session, const WholeJobFlags& flags) {
  Console& console = session.console();
  InterruptListener::Handler handler(session.interrupts(),
                                     [&session] { session.canceller().Cancel(); });
  if (absl::Status status = CheckOutput(flags); !status.ok()) return Fail(session, status);
  TransferDisplay transfers(console.err, console.err_terminal);
  const auto submitted = SubmitJob(session.client(), flags.job, transfers);
  if (!submitted.ok()) {
    transfers.OnStop();
    if (session.canceller().IsCancelled()) {
      console.err << "Interrupted; nothing was submitted. What was uploaded is kept: the same "
                     "command continues there."
                  << std::endl;
    }
    return Fail(session, submitted.status());
  }
  if (flags.job.validate_only) {
    console.err << "The job is valid; nothing was submitted." << std::endl;
    return ExitStatus::kDone;
  }
  const std::string name = submitted->name();
  // The request id may have led to another job than the one whose part is in the folder.
  if (absl::Status status = CheckOutputFolder(flags.output, name); !status.ok()) {
    return Fail(session, status);
  }
  console.err << "Job " << name << std::endl;
  const auto job = FollowJob(session, name, {&console.err, console.err_terminal, false});
  if (!job.ok()) return Fail(session, job.status());
  const ExitStatus end = ReportEnd(session, *job);
  if (end == ExitStatus::kDone) {
    Downloader downloader(session.client(), transfers);
    const absl::Status status = downloader.DownloadJob(name, flags.output);
    if (!status.ok()) {
      transfers.OnStop();
      console.err << "The job is done; `ptq download " << ShortName(name) << " " << flags.output
                  << "` continues the download." << std::endl;
      return Fail(session, status);
    }
  }
  if (flags.json) {
    Json json = MessageToJson(*job);
    json["output"] = end == ExitStatus::kDone ? Json(flags.output) : Json(nullptr);
    console.out << DumpJsonPretty(json) << std::flush;
  } else if (end == ExitStatus::kDone) {
    console.out << SuccessText(session, *job) << "Result: " << flags.output
                << " (open report.html there for the whole report)" << std::endl;
  }
  return end;
}

// --output, --json, and what the command does.
void AddOutput(CLI::App& command, CommandLine& line, std::shared_ptr<WholeJobFlags> flags) {
  command
      .add_option("--output", flags->output,
                  "Folder for the result: a new or an empty one, or the job's partial download.")
      ->type_name("DIR")
      ->required()
      ->group("Output");
  AddJsonFlag(command, flags->json);
  command.callback(
      [&line, flags] { line.run = [flags](Session& session) { return Run(session, *flags); }; });
}

}  // namespace

void AddQuantizeCommand(CLI::App& root, CommandLine& line) {
  HelpText help;
  help.synopsis = {"ptq quantize MODEL_DIR [--calibration FILE] --output DIR [FLAG]..."};
  help.description =
      "Uploads the checkpoint and the texts, submits a job, shows its progress, downloads the "
      "result into --output and prints what the quantization cost.\n\n"
      "Uploads skip what the server has and continue where an interrupted run stopped. Uploaded "
      "are *.json, tokenizer and chat-template files and the safetensors that the index names; "
      "other files are skipped.\n\n"
      "Ctrl-C while the job runs detaches: the job goes on, and `ptq watch` and `ptq download` "
      "take up from there. A second Ctrl-C cancels the job.\n\n"
      "Progress goes to standard error, the summary (with --json the job) to standard output.";
  help.examples = {
      {"Auto-Round at 4 bits, groups of 128:",
       "ptq quantize ./model --calibration text.jsonl --output ./model-w4"},
      {"3 bits by GPTQ, the down projections at 8 bits:",
       "ptq quantize ./model --calibration text.jsonl --output ./out --algorithm gptq --bits 3 "
       "--rule '.*down_proj:bits=8'"},
      {"Rounding only, one scale a row, no calibration:",
       "ptq quantize ./model --output ./out --algorithm rtn --bits 8 --group-size -1"}};
  help.ends_with_job = true;
  CLI::App& command =
      AddCommand(root, "quantize", "upload, quantize, watch and download in one go", help);
  auto flags = std::make_shared<WholeJobFlags>();
  AddJobFlags(command, flags->job);
  AddOutput(command, line, flags);
}

void AddConvertCommand(CLI::App& root, CommandLine& line) {
  HelpText help;
  help.synopsis = {"ptq convert MODEL --format NAME[,NAME]... --output DIR [FLAG]..."};
  help.description =
      "Uploads a quantized model, has the server write it in other formats, and downloads the "
      "result into --output. Nothing is quantized again: codes, scales and zero points stay what "
      "they are, and what a format can't hold exactly is refused with the tensor and the "
      "reason.\n\n"
      "The model may be of another program: torchao, llm-compressor, AutoRound, AutoGPTQ, "
      "GPTQModel, AutoAWQ, llama.cpp. Uploads, Ctrl-C and streams are those of `ptq quantize`.";
  help.examples = {
      {"A GPTQ model for llama.cpp:",
       "ptq convert ./model-gptq --format gguf --output ./model-gguf"},
      {"For vLLM and for AutoRound's loader, into one folder each:",
       "ptq convert ./model-awq --format compressed-tensors,auto-round --output ./converted"}};
  help.ends_with_job = true;
  CLI::App& command = AddCommand(root, "convert", "write a quantized model in other formats", help);
  auto flags = std::make_shared<WholeJobFlags>();
  AddConversionFlags(command, flags->job);
  AddOutput(command, line, flags);
}

}  // namespace ptq
