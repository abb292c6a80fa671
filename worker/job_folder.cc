#include "worker/job_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <chrono>
#include <regex>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "worker/file_digest.h"

namespace ptq {
namespace {

constexpr char kState[] = ".ptq-worker";
constexpr char kMemory[] = "memory.json";
constexpr char kReport[] = "report.json";
constexpr char kReportHtml[] = "report.html";
constexpr std::chrono::seconds kLockPatience(10);

std::string ManifestName(int64_t block) { return absl::StrFormat("block-%05d.json", block); }

// "bits is 3 there and 4 here" for the first key in which two objects differ.
std::string FirstDifference(const Json& there, const Json& here) {
  for (const auto& [key, value] : here.items()) {
    const auto it = there.find(key);
    if (it == there.end() || *it != value) {
      const std::string other = it == there.end() ? "absent" : DumpJson(*it);
      return key + " is " + other + " there and " + DumpJson(value) + " here";
    }
  }
  return "its spec has other keys";
}

absl::StatusOr<int> Lock(const std::string& path, const CancellationToken& cancel) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(errno, path);
  const auto deadline = std::chrono::steady_clock::now() + kLockPatience;
  // The lock dies with its process: a worker that is just being stopped frees it in a moment.
  while (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    absl::Status status = cancel.Check();
    if (status.ok() && std::chrono::steady_clock::now() > deadline) {
      status = absl::UnavailableError(path + ": another ptq-worker is working in this folder");
    }
    if (!status.ok()) {
      ::close(fd);
      return status;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  return fd;
}

absl::Status RemoveFile(const std::string& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return ErrnoStatus(errno, path);
  return absl::OkStatus();
}

absl::Status CheckSameJob(const std::string& path, const JobIdentity& identity, const Json& other) {
  const Json spec = other.value("spec", Json::object());
  Json stored = spec;
  for (const char* key : {"model", "calibration", "evaluation"}) stored.erase(key);
  std::string difference;
  if (stored != identity.spec) {
    difference = FirstDifference(stored, identity.spec);
  } else {
    const Json inputs = other.value("inputs", Json::object());
    for (const auto& [key, value] : identity.inputs.items()) {
      if (inputs.value(key, Json()) != value) {
        difference = "the content of its " + key + " input is another";
        break;
      }
    }
  }
  if (difference.empty()) return absl::OkStatus();
  return absl::AlreadyExistsError(path + " belongs to another job (" + difference +
                                  "): choose an empty folder");
}

}  // namespace

JobFolder::~JobFolder() {
  if (fresh_ && !identified_) {
    const absl::Status emptied = StartOver();
    if (!emptied.ok()) PTQ_LOG(Warning) << Message(emptied);
  }
  ::close(lock_fd_);
}

std::string JobFolder::StatePath(const std::string& name) const {
  return JoinPath(JoinPath(path_, kState), name);
}

std::string JobFolder::record_folder() const { return StatePath("records"); }
std::string JobFolder::fisher_folder() const { return StatePath("fisher"); }

std::vector<std::string> JobFolder::formats() const {
  std::vector<std::string> names;
  for (const Json& name : identity_.spec.value("format", Json::array())) names.push_back(name);
  return names;
}

absl::StatusOr<std::unique_ptr<JobFolder>> JobFolder::Open(
    const std::string& path, JobIdentity identity, std::function<absl::StatusOr<Json>()> inputs,
    const CancellationToken& cancel) {
  PTQ_RETURN_IF_ERROR(MakeDirectories(path));
  PTQ_ASSIGN_OR_RETURN(const int fd, Lock(path, cancel));
  std::unique_ptr<JobFolder> folder(
      new JobFolder(path, fd, std::move(identity), std::move(inputs)));
  PTQ_RETURN_IF_ERROR(folder->OpenFinished(cancel));
  if (!folder->finished_report_) PTQ_RETURN_IF_ERROR(folder->OpenUnfinished(cancel));
  return folder;
}

absl::Status JobFolder::WriteIdentity() const {
  return WriteFileAtomically(StatePath("job.json"),
                             DumpJsonPretty(Json{{"spec", identity_.spec},
                                                 {"inputs", identity_.inputs},
                                                 {"environment", identity_.environment}}));
}

absl::Status JobFolder::Identify() {
  if (identified_) return absl::OkStatus();
  PTQ_ASSIGN_OR_RETURN(identity_.inputs, inputs_());
  PTQ_RETURN_IF_ERROR(WriteIdentity());
  identified_ = true;
  return absl::OkStatus();
}

absl::Status JobFolder::OpenFinished(const CancellationToken& cancel) {
  const std::string report_path = JoinPath(path_, kReport);
  if (!PathExists(report_path)) return absl::OkStatus();
  PTQ_ASSIGN_OR_RETURN(const std::string text, ReadFile(report_path));
  absl::StatusOr<Json> report = ParseJson(text);
  if (!report.ok() || !report->is_object() || !report->contains("outputs")) {
    return absl::AlreadyExistsError(
        path_ + " holds a report.json of something else: choose an empty folder");
  }
  PTQ_ASSIGN_OR_RETURN(identity_.inputs, inputs_());
  PTQ_RETURN_IF_ERROR(CheckSameJob(path_, identity_, *report));
  if (report->value("environment", Json()) != identity_.environment) {
    return absl::AlreadyExistsError(
        path_ + " holds the finished result of the same job made elsewhere (" +
        FirstDifference(report->value("environment", Json::object()), identity_.environment) +
        "): choose an empty folder");
  }
  PTQ_RETURN_IF_ERROR(RemoveTemporaryFiles());
  for (const Json& output : (*report)["outputs"]) {
    PTQ_ASSIGN_OR_RETURN(const std::string name, JsonString(output, "path"));
    PTQ_ASSIGN_OR_RETURN(const std::string expected, JsonString(output, "sha256"));
    const auto digest = IsSafeRelativePath(name)
                            ? DigestFile(path_, name, cancel)
                            : absl::InvalidArgumentError(name + ": not a file of this folder");
    if (absl::IsCancelled(digest.status())) return digest.status();
    if (!digest.ok() || digest->sha256 != expected) {
      warnings_.push_back("The finished result's " + name +
                          " was damaged or missing: the job was done again.");
      return StartOver();
    }
  }
  PTQ_RETURN_IF_ERROR(RemoveTree(JoinPath(path_, kState)));
  finished_report_ = *std::move(report);
  return absl::OkStatus();
}

absl::Status JobFolder::OpenUnfinished(const CancellationToken& cancel) {
  const std::string job_path = StatePath("job.json");
  if (!PathExists(job_path)) {
    PTQ_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(path_));
    for (const std::string& name : names) {
      if (name != kState) {
        return absl::AlreadyExistsError(path_ + " is not empty (" + name +
                                        ") and holds no unfinished job: choose an empty folder");
      }
    }
    return OpenFresh();
  }
  PTQ_ASSIGN_OR_RETURN(const std::string text, ReadFile(job_path));
  const auto job = ParseJson(text);
  if (!job.ok()) return Annotate(job.status(), job_path);
  if (job->is_object() && job->value("inputs", Json::object()).is_null()) {
    PTQ_RETURN_IF_ERROR(RemoveTemporaryFiles());
    PTQ_RETURN_IF_ERROR(StartOver());
    return OpenFresh();
  }
  PTQ_ASSIGN_OR_RETURN(identity_.inputs, inputs_());
  PTQ_RETURN_IF_ERROR(CheckSameJob(path_, identity_, *job));
  PTQ_RETURN_IF_ERROR(RemoveTemporaryFiles());
  const Json environment = job->value("environment", Json::object());
  if (environment != identity_.environment) {
    warnings_.push_back("An earlier run's blocks were discarded: " +
                        FirstDifference(environment, identity_.environment) + ".");
    PTQ_RETURN_IF_ERROR(StartOver());
  }
  for (const std::string& warning : warnings_) PTQ_LOG(Warning) << warning;
  PTQ_RETURN_IF_ERROR(MakeDirectories(record_folder()));
  PTQ_RETURN_IF_ERROR(WriteIdentity());
  identified_ = true;
  if (const auto memory_text = ReadFile(StatePath(kMemory)); memory_text.ok()) {
    const auto memory = ParseJson(*memory_text);
    if (!memory.ok()) return Annotate(memory.status(), StatePath(kMemory));
    memory_ = *memory;
  }
  return LoadBlocks(cancel);
}

absl::Status JobFolder::SetMemory(const Json& memory) {
  if (memory == memory_) return absl::OkStatus();
  memory_ = memory;
  return WriteFileAtomically(StatePath(kMemory), DumpJsonPretty(memory));
}

absl::Status JobFolder::OpenFresh() {
  PTQ_RETURN_IF_ERROR(RemoveTree(JoinPath(path_, kState)));
  PTQ_RETURN_IF_ERROR(MakeDirectories(record_folder()));
  PTQ_RETURN_IF_ERROR(WriteIdentity());
  fresh_ = true;
  return absl::OkStatus();
}

absl::Status JobFolder::RemoveTemporaryFiles() {
  static const std::regex kTemporary(R"(.*\.tmp\.[0-9]+\.[0-9]+)");
  std::vector<std::string> folders = {path_, JoinPath(path_, kState), record_folder(),
                                      fisher_folder()};
  for (const std::string& format : formats()) folders.push_back(JoinPath(path_, format));
  for (const std::string& folder : folders) {
    if (!IsDirectory(folder)) continue;
    PTQ_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(folder));
    for (const std::string& name : names) {
      if (!std::regex_match(name, kTemporary)) continue;
      PTQ_RETURN_IF_ERROR(RemoveFile(JoinPath(folder, name)));
    }
  }
  return absl::OkStatus();
}

// Removes what a job of ours wrote, and nothing else. The proof that the files are ours,
// report.json or job.json, goes last: a run killed here starts over again.
absl::Status JobFolder::StartOver() {
  static const std::regex kOurs(
      R"(model-[0-9]+-of-[0-9]+\.safetensors|model\.safetensors\.index\.json|config\.json|)"
      R"(quantize_config\.json|.*\.gguf|report\.html)");
  PTQ_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(path_));
  for (const std::string& name : names) {
    if (!std::regex_match(name, kOurs)) continue;
    PTQ_RETURN_IF_ERROR(RemoveFile(JoinPath(path_, name)));
  }
  for (const std::string& format : formats()) {
    PTQ_RETURN_IF_ERROR(RemoveTree(JoinPath(path_, format)));
  }
  // The identity outlives the report, so that the folder is ours at any moment.
  const std::string report_path = JoinPath(path_, kReport);
  if (PathExists(report_path)) {
    PTQ_RETURN_IF_ERROR(MakeDirectories(JoinPath(path_, kState)));
    PTQ_RETURN_IF_ERROR(CopyFileAtomically(report_path, StatePath("job.json")));
    PTQ_RETURN_IF_ERROR(RemoveFile(report_path));
    return absl::OkStatus();
  }
  return RemoveTree(JoinPath(path_, kState));
}

absl::Status JobFolder::LoadBlocks(const CancellationToken& cancel) {
  for (int64_t block = 0;; ++block) {
    const auto text = ReadFile(StatePath(ManifestName(block)));
    if (!text.ok()) break;
    const auto manifest = ParseJson(*text);
    const auto shard = JsonString(manifest.ok() ? *manifest : Json(), "shard");
    const auto sha256 = JsonString(manifest.ok() ? *manifest : Json(), "sha256");
    if (!shard.ok() || !sha256.ok() || !IsSafeRelativePath(*shard) ||
        !manifest->contains("result")) {
      break;
    }
    const auto digest = DigestFile(path_, *shard, cancel);
    if (absl::IsCancelled(digest.status())) return digest.status();
    if (!digest.ok() || digest->sha256 != *sha256) {
      warnings_.push_back(*shard + " of an earlier run was damaged: redone from that block on.");
      break;
    }
    finished_blocks_.push_back((*manifest)["result"]);
    shard_digests_.push_back(*sha256);
  }
  return DropBlocksFrom(static_cast<int64_t>(finished_blocks_.size()));
}

absl::Status JobFolder::FinishBlock(const std::string& shard, const std::string& sha256,
                                    const Json& result) {
  PTQ_RETURN_IF_ERROR(Identify());
  const auto block = static_cast<int64_t>(finished_blocks_.size());
  const Json manifest = {{"shard", shard}, {"sha256", sha256}, {"result", result}};
  PTQ_RETURN_IF_ERROR(
      WriteFileAtomically(StatePath(ManifestName(block)), DumpJsonPretty(manifest)));
  finished_blocks_.push_back(result);
  shard_digests_.push_back(sha256);
  return absl::OkStatus();
}

absl::Status JobFolder::DropBlocksFrom(int64_t first) {
  PTQ_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(StatePath("")));
  // Last block first: what stays after a crash is still a prefix.
  for (auto name = names.rbegin(); name != names.rend(); ++name) {
    if (name->rfind("block-", 0) == 0 && *name >= ManifestName(first)) {
      PTQ_RETURN_IF_ERROR(RemoveFile(StatePath(*name)));
    }
  }
  if (first < static_cast<int64_t>(finished_blocks_.size())) {
    finished_blocks_.resize(static_cast<size_t>(first));
    shard_digests_.resize(static_cast<size_t>(first));
  }
  return absl::OkStatus();
}

absl::Status JobFolder::Finish(const std::string& html, const Json& report) {
  PTQ_RETURN_IF_ERROR(WriteFileAtomically(JoinPath(path_, kReportHtml), html));
  PTQ_RETURN_IF_ERROR(WriteFileAtomically(JoinPath(path_, kReport), DumpJsonPretty(report)));
  return RemoveTree(JoinPath(path_, kState));
}

}  // namespace ptq
