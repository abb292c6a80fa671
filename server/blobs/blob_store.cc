#include "server/blobs/blob_store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "common/logging.h"
#include "common/sha256.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "server/errors/status_details.h"

namespace ptq {
namespace {

constexpr char kPartSuffix[] = ".part";
constexpr size_t kReadBytes = 1 << 20;

absl::Status Damaged(const v1::Digest& digest, const std::string& how) {
  return WithReason(absl::DataLossError(absl::StrFormat(
                        "the stored blob %s is damaged: %s; send it again", digest.hash(), how)),
                    "BLOB_DAMAGED");
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlobStore>> BlobStore::Open(const std::string& data_dir,
                                                           BlobIndex& index) {
  std::unique_ptr<BlobStore> store(new BlobStore(data_dir, index));
  PTQ_RETURN_IF_ERROR(MakeDirectories(JoinPath(data_dir, "blobs")));
  PTQ_RETURN_IF_ERROR(MakeDirectories(JoinPath(data_dir, "uploads")));
  return store;
}

std::string BlobStore::PathOf(const std::string& hash) const {
  return data_dir_ + "/blobs/" + hash.substr(0, 2) + "/" + hash;
}

std::string BlobStore::PartPath(const UploadName& name) const {
  return absl::StrFormat("%s/uploads/%s-%s-%s-%d%s", data_dir_, name.tenant, name.uuid,
                         name.digest.hash(), name.digest.size_bytes(), kPartSuffix);
}

absl::StatusOr<std::vector<v1::Digest>> BlobStore::MissingBlobs(
    const std::string& tenant, const std::vector<v1::Digest>& digests) {
  return index_.MissingBlobs(tenant, digests, absl::Now());
}

absl::StatusOr<ReadableFile> BlobStore::OpenBlob(const std::string& tenant,
                                                 const v1::Digest& digest) {
  PTQ_ASSIGN_OR_RETURN(const auto missing, index_.MissingBlobs(tenant, {digest}, absl::Now()));
  if (!missing.empty()) {
    return ResourceNotFound("blob", absl::StrFormat("%s/%d", digest.hash(), digest.size_bytes()));
  }
  auto file = ReadableFile::Open(PathOf(digest.hash()));
  if (!file.ok() && !absl::IsNotFound(file.status())) return file.status();
  if (!file.ok() || file->size() != digest.size_bytes()) {
    PTQ_RETURN_IF_ERROR(ReportDamage(digest));
    return Damaged(digest, file.ok() ? "its size changed" : "its file is gone");
  }
  return file;
}

absl::Status BlobStore::VerifyBlob(const v1::Digest& digest, const CancellationToken& cancel) {
  auto file = ReadableFile::Open(PathOf(digest.hash()));
  if (!file.ok() || file->size() != digest.size_bytes()) {
    PTQ_RETURN_IF_ERROR(ReportDamage(digest));
    return Damaged(digest, file.ok() ? "its size changed" : "its file is gone");
  }
  Sha256 sha;
  std::string buffer(kReadBytes, '\0');
  for (int64_t offset = 0; offset < file->size();) {
    PTQ_RETURN_IF_ERROR(cancel.Check());
    const size_t count = static_cast<size_t>(std::min<int64_t>(kReadBytes, file->size() - offset));
    PTQ_RETURN_IF_ERROR(file->ReadAt(offset, buffer.data(), count));
    sha.Update(buffer.data(), count);
    offset += static_cast<int64_t>(count);
  }
  if (sha.FinishHex() == digest.hash()) return absl::OkStatus();
  PTQ_RETURN_IF_ERROR(ReportDamage(digest));
  return Damaged(digest, "its SHA-256 does not fit");
}

absl::Status BlobStore::ReportDamage(const v1::Digest& digest) {
  PTQ_LOG(Error) << "blob " << digest.hash() << " is damaged; it counts as missing now";
  absl::MutexLock lock(&publish_mutex_);
  PTQ_RETURN_IF_ERROR(index_.ForgetBlob(digest.hash()));
  ::unlink(PathOf(digest.hash()).c_str());
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<BlobUpload>> BlobStore::BeginUpload(const UploadName& name) {
  const std::string part = PartPath(name);
  PTQ_ASSIGN_OR_RETURN(const auto missing,
                       index_.MissingBlobs(name.tenant, {name.digest}, absl::Now()));
  if (missing.empty()) return nullptr;
  {
    absl::MutexLock lock(&uploads_mutex_);
    if (!active_.emplace(part, nullptr).second) {
      return WithReason(
          absl::AbortedError("another stream is writing this upload; wait until it ends, or use "
                             "another UUID"),
          "UPLOAD_IN_USE");
    }
  }
  auto state = UploadState::Open(part, name.digest.size_bytes());
  if (!state.ok()) {
    EndUpload(part);
    return state.status();
  }
  std::shared_ptr<UploadState> shared = std::move(*state);
  {
    absl::MutexLock lock(&uploads_mutex_);
    active_[part] = shared;
  }
  return std::make_unique<BlobUpload>(*this, name, part, std::move(shared));
}

void BlobStore::EndUpload(const std::string& part_path) {
  absl::MutexLock lock(&uploads_mutex_);
  active_.erase(part_path);
}

absl::StatusOr<UploadProgress> BlobStore::QueryUpload(const UploadName& name) {
  const std::string part = PartPath(name);
  PTQ_ASSIGN_OR_RETURN(const auto missing,
                       index_.MissingBlobs(name.tenant, {name.digest}, absl::Now()));
  if (missing.empty()) return UploadProgress{name.digest.size_bytes(), true};
  std::shared_ptr<UploadState> state;
  {
    absl::MutexLock lock(&uploads_mutex_);
    const auto entry = active_.find(part);
    if (entry != active_.end()) state = entry->second;
  }
  if (state != nullptr) {
    PTQ_RETURN_IF_ERROR(state->Sync());
    return UploadProgress{state->committed(), false};
  }
  return UploadProgress{UploadState::ReadCommitted(part), false};
}

absl::Status BlobStore::CollectAbandonedUploads(absl::Time now, absl::Duration age) {
  const std::string folder = JoinPath(data_dir_, "uploads");
  PTQ_ASSIGN_OR_RETURN(const auto names, ListDirectory(folder));
  absl::MutexLock lock(&uploads_mutex_);
  for (const std::string& name : names) {
    const std::string path = JoinPath(folder, name);
    struct stat info;
    if (!absl::EndsWith(name, kPartSuffix) || active_.count(path) != 0 ||
        ::stat(path.c_str(), &info) != 0 || absl::TimeFromTimespec(info.st_mtim) + age > now) {
      continue;
    }
    PTQ_LOG(Info) << "removing the abandoned upload " << name;
    UploadState::Remove(path);
  }
  return absl::OkStatus();
}

absl::Status BlobStore::MoveIntoStore(const std::string& path, const std::string& hash,
                                      bool keep_source) {
  const std::string target = PathOf(hash);
  PTQ_RETURN_IF_ERROR(MakeDirectories(DirName(target)));
  ::chmod(path.c_str(), 0444);
  if (keep_source) {
    if (::link(path.c_str(), target.c_str()) != 0 && errno != EEXIST) {
      return ErrnoStatus(errno, "blob store");
    }
  } else if (::rename(path.c_str(), target.c_str()) != 0) {
    return ErrnoStatus(errno, "blob store");
  }
  PTQ_RETURN_IF_ERROR(SyncDirectory(DirName(target)));
  // The two-digit folder itself may be new.
  return SyncDirectory(DirName(DirName(target)));
}

absl::Status BlobStore::Publish(const std::vector<NewBlob>& files,
                                absl::FunctionRef<absl::Status()> commit) {
  absl::MutexLock lock(&publish_mutex_);
  for (const NewBlob& file : files) {
    PTQ_RETURN_IF_ERROR(MoveIntoStore(file.path, file.digest.hash(), /*keep_source=*/true));
  }
  return commit();
}

absl::Status BlobStore::Collect(const std::string& tenant, const std::vector<std::string>& hashes) {
  absl::MutexLock lock(&publish_mutex_);
  return CollectLocked(tenant, hashes);
}

absl::Status BlobStore::CollectLocked(const std::string& tenant,
                                      const std::vector<std::string>& hashes) {
  PTQ_ASSIGN_OR_RETURN(const auto free, index_.RemoveUnreferencedBlobs(tenant, hashes));
  for (const std::string& hash : free) ::unlink(PathOf(hash).c_str());
  return absl::OkStatus();
}

absl::Status BlobStore::CollectStale(absl::Time now, absl::Duration age) {
  absl::MutexLock lock(&publish_mutex_);
  PTQ_ASSIGN_OR_RETURN(const auto stale, index_.StaleBlobs(now - age));
  for (const auto& [tenant, hash] : stale) {
    PTQ_RETURN_IF_ERROR(CollectLocked(tenant, {hash}));
  }
  return absl::OkStatus();
}

BlobUpload::BlobUpload(BlobStore& store, UploadName name, std::string part_path,
                       std::shared_ptr<UploadState> state)
    : store_(store),
      name_(std::move(name)),
      part_path_(std::move(part_path)),
      state_(std::move(state)) {}

BlobUpload::~BlobUpload() {
  if (ended_) return;
  const absl::Status status = state_->Sync();
  if (!status.ok()) PTQ_LOG(Warning) << "unfinished upload: " << Message(status);
  store_.EndUpload(part_path_);
}

void BlobUpload::Discard() {
  ended_ = true;
  UploadState::Remove(part_path_);
  store_.EndUpload(part_path_);
}

absl::Status BlobUpload::Append(int64_t offset, std::string_view data) {
  const int64_t written = state_->written();
  const int64_t size = name_.digest.size_bytes();
  if (offset > written) {
    return WithReason(absl::OutOfRangeError(absl::StrFormat(
                          "write_offset %d is beyond the %d bytes that have arrived; ask "
                          "QueryWriteStatus where to go on",
                          offset, written)),
                      "OFFSET_TOO_HIGH");
  }
  if (offset < 0) return InvalidField("write_offset", "it is negative");
  if (static_cast<int64_t>(data.size()) > size - offset) {
    Discard();
    return WithReason(
        absl::InvalidArgumentError(absl::StrFormat(
            "more bytes than the %d of the resource name; the upload was discarded", size)),
        "SIZE_MISMATCH");
  }
  const size_t known =
      static_cast<size_t>(std::min<int64_t>(written - offset, static_cast<int64_t>(data.size())));
  return state_->Append(data.substr(known));
}

absl::Status BlobUpload::Finish() {
  const int64_t size = name_.digest.size_bytes();
  if (state_->written() != size) {
    const int64_t written = state_->written();
    Discard();
    return WithReason(absl::InvalidArgumentError(absl::StrFormat(
                          "the upload ended after %d bytes, its resource name says %d; it was "
                          "discarded",
                          written, size)),
                      "SIZE_MISMATCH");
  }
  const std::string hash = state_->FinishHex();
  if (hash != name_.digest.hash()) {
    Discard();
    return WithReason(absl::InvalidArgumentError(absl::StrFormat(
                          "the bytes have the SHA-256 %s, the resource name says %s; the upload "
                          "was discarded",
                          hash, name_.digest.hash())),
                      "DIGEST_MISMATCH");
  }
  PTQ_RETURN_IF_ERROR(state_->Sync());
  {
    absl::MutexLock lock(&store_.publish_mutex_);
    PTQ_RETURN_IF_ERROR(store_.MoveIntoStore(part_path_, hash, /*keep_source=*/false));
    PTQ_RETURN_IF_ERROR(store_.index_.AddBlob(name_.tenant, name_.digest, absl::Now()));
  }
  Discard();
  return absl::OkStatus();
}

}  // namespace ptq
