#include "worker/convert.h"

#include <memory>
#include <utility>

#include "common/file.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "common/torch_status.h"
#include "formats/checkpoint_format.h"
#include "worker/export_formats.h"
#include "worker/process_memory.h"
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

// The result's digest, as a job's.
absl::StatusOr<std::string> Export(const QuantizedCheckpoint& checkpoint,
                                   const ConvertOptions& options, EventWriter& events,
                                   const CancellationToken& cancel) {
  events.Phase("export", 0);
  PTQ_RETURN_IF_ERROR(
      ExportFormats(checkpoint, options.formats, {}, options.output, cancel,
                    [&events](double fraction) { events.Phase("export", fraction); }));
  PTQ_ASSIGN_OR_RETURN(const auto names, ListResultFiles(options.output));
  std::vector<FileDigest> files;
  for (const std::string& name : names) {
    PTQ_ASSIGN_OR_RETURN(FileDigest digest, DigestFile(options.output, name, cancel));
    files.push_back(std::move(digest));
  }
  events.Phase("export", 1);
  return FolderDigest(std::move(files));
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
  PTQ_ASSIGN_OR_RETURN(const CheckpointFormat* source, DetectCheckpointFormat(options.from));
  PTQ_ASSIGN_OR_RETURN(const auto checkpoint, source->Open(options.from));
  for (const std::string& name : options.formats) {
    const CheckpointFormat* format = FindCheckpointFormat(name);
    if (format == nullptr) return absl::InternalError("there is no format " + name);
    PTQ_RETURN_IF_ERROR(format->CheckPlan(checkpoint->plan()));
  }
  JobEvent started;
  started.type = JobEvent::Type::kStarted;
  started.blocks_total = checkpoint->plan().source.config.num_hidden_layers;
  started.device = "cpu";
  events.Write(std::move(started));
  for (const std::string& warning : checkpoint->plan().source.warnings) {
    events.Log("warning", warning);
  }
  PTQ_RETURN_IF_ERROR(MakeDirectories(options.output));
  absl::StatusOr<std::string> digest = Export(*checkpoint, options, events, cancel);
  if (!digest.ok()) {
    if (const absl::Status removed = RemoveResult(options.output); !removed.ok()) {
      PTQ_LOG(Warning) << Message(removed);
    }
  }
  return digest;
}

}  // namespace

int RunConvert(const ConvertOptions& options, EventWriter& events,
               const CancellationToken& cancel) {
  const auto digest = CatchTorchErrors("convert", [&] { return Convert(options, events, cancel); });
  return FinishRun(digest, IsRefusal(digest.status()), events, cancel);
}

}  // namespace ptq
