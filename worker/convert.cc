#include "worker/convert.h"

#include <chrono>
#include <memory>
#include <utility>

#include "common/file.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "common/torch_status.h"
#include "formats/checkpoint_format.h"
#include "formats/gguf_checkpoint.h"
#include "formats/headers/model_files.h"
#include "worker/conversion_report.h"
#include "worker/engine_version.h"
#include "worker/export_formats.h"
#include "worker/input_digests.h"
#include "worker/job_folder.h"
#include "worker/loader_report.h"
#include "worker/process_memory.h"
#include "worker/report.h"
#include "worker/report_html.h"
#include "worker/run_job.h"
#include "worker/stop_signals.h"

namespace ptq {
namespace {

absl::Status CheckOutput(const std::string& output) {
  if (!PathExists(output)) return absl::OkStatus();
  PTQ_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(output));
  if (names.empty()) return absl::OkStatus();
  return absl::AlreadyExistsError(output + " is not empty (" + names.front() +
                                  "): choose an empty folder");
}

struct Source {
  std::string format;
  std::unique_ptr<QuantizedCheckpoint> checkpoint;
};

// A model that the formats can hold, as far as that is known before its records are read.
absl::StatusOr<Source> OpenSource(const std::string& path, const std::string& config,
                                  const std::vector<std::string>& formats) {
  Source source;
  PTQ_ASSIGN_OR_RETURN(const CheckpointFormat* from, DetectCheckpointFormat(path));
  source.format = from->name();
  if (config.empty()) {
    PTQ_ASSIGN_OR_RETURN(source.checkpoint, from->Open(path));
  } else if (source.format == "gguf") {
    PTQ_ASSIGN_OR_RETURN(const std::string file, FindGgufFile(path));
    PTQ_ASSIGN_OR_RETURN(source.checkpoint, OpenGguf(file, config));
  } else {
    return absl::InvalidArgumentError("--config goes with a .gguf file; a folder has its own");
  }
  for (const std::string& name : formats) {
    const CheckpointFormat* format = FindCheckpointFormat(name);
    if (format == nullptr) return absl::InternalError("there is no format " + name);
    PTQ_RETURN_IF_ERROR(format->CheckPlan(source.checkpoint->plan()));
  }
  return source;
}

void SayStarted(const ExportPlan& plan, EventWriter& events) {
  JobEvent started;
  started.type = JobEvent::Type::kStarted;
  started.blocks_total = plan.source.config.num_hidden_layers;
  started.device = "cpu";
  events.Write(std::move(started));
  for (const std::string& warning : plan.source.warnings) events.Log("warning", warning);
}

// The result's files, as a job's.
absl::StatusOr<std::vector<FileDigest>> Export(const QuantizedCheckpoint& checkpoint,
                                               const std::vector<std::string>& formats,
                                               const std::string& output, EventWriter& events,
                                               const CancellationToken& cancel) {
  events.Phase("export", 0);
  PTQ_ASSIGN_OR_RETURN(const FileDigests written,
                       ExportFormats(checkpoint, formats, {}, output, cancel,
                                     [&events](double done) { events.Phase("export", done); }));
  PTQ_ASSIGN_OR_RETURN(std::vector<FileDigest> files, DigestResultFiles(output, written, cancel));
  events.Phase("export", 1);
  return files;
}

absl::Status RemoveResult(const std::string& output) {
  PTQ_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(output));
  for (const std::string& name : names) {
    PTQ_RETURN_IF_ERROR(RemoveTree(JoinPath(output, name)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Convert(const ConvertOptions& options, EventWriter& events,
                                    const CancellationToken& cancel) {
  PTQ_RETURN_IF_ERROR(CheckOutput(options.output));
  PTQ_ASSIGN_OR_RETURN(const Source source,
                       OpenSource(options.from, options.config, options.formats));
  SayStarted(source.checkpoint->plan(), events);
  PTQ_RETURN_IF_ERROR(MakeDirectories(options.output));
  const auto files = Export(*source.checkpoint, options.formats, options.output, events, cancel);
  if (files.ok()) return FolderDigest(*files);
  if (const absl::Status removed = RemoveResult(options.output); !removed.ok()) {
    PTQ_LOG(Warning) << Message(removed);
  }
  return files.status();
}

}  // namespace

int RunConvert(const ConvertOptions& options, EventWriter& events,
               const CancellationToken& cancel) {
  const auto digest = CatchTorchErrors("convert", [&] { return Convert(options, events, cancel); });
  return FinishRun(digest, IsRefusal(digest.status()), events, cancel);
}

absl::StatusOr<std::string> RunConvertJob(const JobSpec& spec, const std::string& output,
                                          EventWriter& events, const CancellationToken& cancel) {
  using Clock = std::chrono::steady_clock;
  const auto seconds = [](Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
  };
  const Clock::time_point start = Clock::now();
  PTQ_RETURN_IF_ERROR(ValidateJobSpec(spec));
  events.Phase("load", 0);
  InputDigests digests(spec, cancel);
  PTQ_ASSIGN_OR_RETURN(const Source source, OpenSource(spec.model, "", spec.format));
  const ExportPlan& plan = source.checkpoint->plan();
  const auto wait = [&] {
    return digests.Wait([&events](double fraction) { events.Phase("load", fraction); });
  };
  JobIdentity identity;
  identity.spec = SpecWithoutPaths(spec);
  identity.environment = {{"engine_version", EngineVersion()}};
  PTQ_ASSIGN_OR_RETURN(const auto folder,
                       JobFolder::Open(output, std::move(identity), wait, cancel));
  SayStarted(plan, events);
  if (folder->finished_report()) {
    events.Log("info", "the folder holds this job's finished result");
    return JsonString(*folder->finished_report(), "result_digest");
  }
  for (const std::string& warning : folder->warnings()) events.Log("warning", warning);
  // Before the first file: what a stopped run leaves is known to be this job's.
  PTQ_RETURN_IF_ERROR(folder->Identify());
  const Clock::time_point loaded = Clock::now();
  PTQ_ASSIGN_OR_RETURN(std::vector<FileDigest> files,
                       Export(*source.checkpoint, spec.format, output, events, cancel));
  const Clock::time_point exported = Clock::now();
  std::vector<WrittenFormat> written;
  for (const std::string& format : spec.format) {
    written.push_back({format, FormatFolder(output, spec.format, format)});
  }
  const Json report = BuildConversionReport({.spec = spec,
                                             .plan = plan,
                                             .source_format = source.format,
                                             .inputs = folder->identity().inputs,
                                             .environment = folder->identity().environment,
                                             .loaders = JudgeFormats(written),
                                             .outputs = std::move(files),
                                             .load_seconds = seconds(start, loaded),
                                             .export_seconds = seconds(loaded, exported),
                                             .total_seconds = seconds(start, Clock::now()),
                                             .host_peak_bytes = HostPeakBytes()});
  PTQ_RETURN_IF_ERROR(folder->Finish(RenderHtmlReport(report), report));
  return JsonString(report, "result_digest");
}

}  // namespace ptq
