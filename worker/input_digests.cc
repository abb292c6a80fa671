#include "worker/input_digests.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/status_macros.h"
#include "formats/headers/checkpoint_index.h"
#include "formats/headers/model_files.h"

namespace ptq {
namespace {

// Files hashed at a time. A thread hashes one to two gigabytes a second, so that a few keep up with
// a disk; more would take the disk from the files that the job itself reads first.
constexpr unsigned kThreads = 4;
constexpr std::chrono::milliseconds kProgressInterval(250);

}  // namespace

InputDigests::InputDigests(const JobSpec& spec, const CancellationToken& cancel) : cancel_(cancel) {
  std::vector<std::string> skipped;
  auto names = SelectModelFiles(spec.model, &skipped);
  listed_ = names.status();
  if (names.ok()) {
    std::sort(names->begin(), names->end());
    const std::string folder = ModelFolder(spec.model);
    for (std::string& name : *names) files_.push_back({folder, std::move(name), FileStamp()});
    model_files_ = files_.size();
    calibration_ = !spec.calibration.empty();
    evaluation_ = !spec.evaluation.empty();
    if (calibration_) files_.push_back({"", spec.calibration, FileStamp()});
    if (evaluation_) files_.push_back({"", spec.evaluation, FileStamp()});
  }
  for (File& file : files_) {
    file.stamp = StampOf(JoinPath(file.folder, file.name));
    if (file.stamp.ok()) total_bytes_ += file.stamp->size;
  }
  const auto threads = std::max<size_t>(
      1, std::min<size_t>(std::min(kThreads, std::thread::hardware_concurrency()), files_.size()));
  working_ = threads;
  for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
}

InputDigests::~InputDigests() { stop_ = true; }

absl::Status InputDigests::Hash(File& file) {
  PTQ_RETURN_IF_ERROR(file.stamp.status());
  file.digest = DigestFile(file.folder, file.name, [this](int64_t count) {
    done_bytes_ += count;
    return stop_ ? absl::CancelledError("not needed") : cancel_.Check();
  });
  PTQ_RETURN_IF_ERROR(file.digest.status());
  // Whatever was read of it until now is what was hashed.
  const std::string path = JoinPath(file.folder, file.name);
  PTQ_ASSIGN_OR_RETURN(const FileStamp stamp, StampOf(path));
  if (stamp != *file.stamp) {
    return absl::DataLossError(path + ": changed while the job was reading it");
  }
  return absl::OkStatus();
}

void InputDigests::Work() {
  for (size_t i = next_++; i < files_.size(); i = next_++) {
    const absl::Status status = Hash(files_[i]);
    if (status.ok()) continue;
    files_[i].digest = status;
    next_ = files_.size();  // nothing more is of use
  }
  const std::lock_guard lock(mutex_);
  if (--working_ > 0) return;
  result_ = Result();
  changed_.notify_all();
}

absl::StatusOr<Json> InputDigests::Result() const {
  PTQ_RETURN_IF_ERROR(listed_);
  // What failed comes first: the files after it may only have been left out.
  for (const File& file : files_) {
    if (!file.digest.ok() && !absl::IsCancelled(file.digest.status())) return file.digest.status();
  }
  for (const File& file : files_) PTQ_RETURN_IF_ERROR(file.digest.status());
  Json inputs;
  inputs["model"] = Json::array();
  for (size_t i = 0; i < model_files_; ++i) {
    inputs["model"].push_back(FileDigestToJson(*files_[i].digest));
  }
  const auto data = [this](size_t index, bool given) {
    if (!given) return Json(nullptr);
    const FileDigest& digest = *files_[index].digest;
    return Json{{"size_bytes", digest.size_bytes}, {"sha256", digest.sha256}};
  };
  inputs["calibration"] = data(model_files_, calibration_);
  inputs["evaluation"] = data(model_files_ + (calibration_ ? 1 : 0), evaluation_);
  return inputs;
}

absl::StatusOr<Json> InputDigests::Wait(const std::function<void(double)>& progress) {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, kProgressInterval, [&] { return result_.has_value(); })) {
    if (progress && total_bytes_ > 0) {
      progress(static_cast<double>(done_bytes_) / static_cast<double>(total_bytes_));
    }
  }
  return *result_;
}

absl::Status InputDigests::Check() {
  const std::lock_guard lock(mutex_);
  return result_ ? result_->status() : absl::OkStatus();
}

}  // namespace ptq
