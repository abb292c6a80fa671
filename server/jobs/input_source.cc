#include "server/jobs/input_source.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/sha256.h"
#include "common/status_macros.h"
#include "formats/headers/checkpoint_index.h"
#include "formats/headers/model_files.h"
#include "server/errors/status_details.h"

namespace ptq {
namespace {

constexpr int kMaxFiles = 20'000;

void SortFiles(std::vector<SourceFile>& files) {
  std::sort(files.begin(), files.end(),
            [](const SourceFile& a, const SourceFile& b) { return a.path < b.path; });
}

void SetRootDigest(ResolvedSource& source, const std::string& listing) {
  source.root_digest.set_hash(Sha256Hex(listing));
  source.root_digest.set_size_bytes(static_cast<int64_t>(listing.size()));
  for (const SourceFile& file : source.files) source.size_bytes += file.digest.size_bytes();
}

}  // namespace

absl::StatusOr<ResolvedSource> InputSources::Resolve(const std::string& tenant, InputKind kind,
                                                     const v1::Source& source) const {
  switch (source.source_case()) {
    case v1::Source::kManifest:
      if (kind == InputKind::kDataset && source.manifest().files_size() != 1) {
        return InvalidField("source.manifest.files", "a dataset is exactly one file");
      }
      return ResolveManifest(tenant, source.manifest());
    case v1::Source::kServerPath: {
      auto resolved = ResolveServerPath(kind, source.server_path());
      if (!resolved.ok()) return AtField(resolved.status(), "source.server_path");
      return resolved;
    }
    case v1::Source::kUri:
      return WithReason(AtField(absl::UnimplementedError(
                                    "URIs are not served yet; upload the files or name a server "
                                    "path"),
                                "source.uri"),
                        "URI_NOT_SERVED");
    case v1::Source::SOURCE_NOT_SET:
      break;
  }
  return InvalidField("source", "is missing");
}

absl::StatusOr<ResolvedSource> InputSources::ResolveManifest(
    const std::string& tenant, const v1::Source::Manifest& manifest) const {
  if (manifest.files_size() == 0) return InvalidField("source.manifest.files", "is empty");
  if (manifest.files_size() > kMaxFiles) {
    return InvalidField("source.manifest.files",
                        absl::StrFormat("has more than %d files", kMaxFiles));
  }
  ResolvedSource resolved;
  std::vector<v1::Digest> digests;
  for (int i = 0; i < manifest.files_size(); ++i) {
    const v1::FileNode& file = manifest.files(i);
    const std::string field = absl::StrFormat("source.manifest.files[%d]", i);
    if (!IsSafeRelativePath(file.path())) {
      return InvalidField(field + ".path",
                          "must be a relative path without \"..\", \".\", empty parts, "
                          "backslashes or control characters");
    }
    if (!IsSha256Hex(file.digest().hash()) || file.digest().size_bytes() < 0) {
      return InvalidField(field + ".digest", "must be 64 lowercase hexadecimal digits and a size");
    }
    resolved.files.push_back({file.path(), blobs_.PathOf(file.digest().hash()), file.digest()});
    digests.push_back(file.digest());
  }
  SortFiles(resolved.files);
  for (size_t i = 1; i < resolved.files.size(); ++i) {
    const std::string& before = resolved.files[i - 1].path;
    const std::string& path = resolved.files[i].path;
    if (path == before || path.compare(0, before.size() + 1, before + "/") == 0) {
      return InvalidField("source.manifest.files", "names " + before + " twice");
    }
  }
  PTQ_ASSIGN_OR_RETURN(const auto missing, blobs_.MissingBlobs(tenant, digests));
  if (!missing.empty()) return MissingBlobsError(missing);
  std::string listing;
  for (const SourceFile& file : resolved.files) {
    listing +=
        absl::StrFormat("%s %d %s\n", file.digest.hash(), file.digest.size_bytes(), file.path);
  }
  SetRootDigest(resolved, listing);
  return resolved;
}

absl::StatusOr<ResolvedSource> InputSources::ResolveServerPath(InputKind kind,
                                                               const std::string& path) const {
  PTQ_ASSIGN_OR_RETURN(const std::string real, roots_.Resolve(path));
  std::vector<std::pair<std::string, std::string>> names;  // inside the model, on the disk
  if (kind == InputKind::kDataset) {
    names.emplace_back(BaseName(path), real);
  } else {
    const std::string folder = ModelFolder(real);
    if (!IsDirectory(folder)) return absl::InvalidArgumentError(path + " is not a folder");
    // Read before the files are known one by one, so its link is followed here first.
    const std::string index = JoinPath(folder, "model.safetensors.index.json");
    if (PathExists(index)) PTQ_RETURN_IF_ERROR(roots_.Resolve(index).status());
    PTQ_ASSIGN_OR_RETURN(const auto selected, SelectModelFiles(real, nullptr));
    for (const std::string& name : selected) names.emplace_back(name, JoinPath(folder, name));
  }
  ResolvedSource resolved;
  std::string listing;
  std::sort(names.begin(), names.end());
  for (const auto& [name, location] : names) {
    SourceFile file;
    file.path = name;
    PTQ_ASSIGN_OR_RETURN(file.target, roots_.Resolve(location));
    struct stat info;
    if (::stat(file.target.c_str(), &info) != 0) return ErrnoStatus(errno, location);
    if (!S_ISREG(info.st_mode)) {
      return absl::InvalidArgumentError(location + " is not a regular file");
    }
    file.digest.set_size_bytes(info.st_size);
    listing += absl::StrFormat("%s %d %d.%09d %s\n", file.target, int64_t{info.st_size},
                               int64_t{info.st_mtim.tv_sec}, int64_t{info.st_mtim.tv_nsec}, name);
    resolved.files.push_back(std::move(file));
  }
  SetRootDigest(resolved, "server path\n" + listing);
  return resolved;
}

absl::Status InputSources::LinkInto(const ResolvedSource& source, const std::string& folder) const {
  PTQ_RETURN_IF_ERROR(MakeDirectories(folder));
  for (const SourceFile& file : source.files) {
    const std::string path = JoinPath(folder, file.path);
    if (file.path.find('/') != std::string::npos) {
      PTQ_RETURN_IF_ERROR(MakeDirectories(DirName(path)));
    }
    const bool is_blob = !file.digest.hash().empty();
    const int result = is_blob ? ::link(file.target.c_str(), path.c_str())
                               : ::symlink(file.target.c_str(), path.c_str());
    if (result == 0) continue;
    // Its row is there, its file is not: count it as missing, so that it can be sent again.
    if (is_blob && errno == ENOENT) {
      PTQ_RETURN_IF_ERROR(blobs_.ReportDamage(file.digest));
      return MissingBlobsError({file.digest});
    }
    return ErrnoStatus(errno, file.path);
  }
  return absl::OkStatus();
}

absl::Status InputSources::Verify(const ResolvedSource& source,
                                  const CancellationToken& cancel) const {
  for (const SourceFile& file : source.files) {
    if (file.digest.hash().empty()) continue;
    PTQ_RETURN_IF_ERROR(blobs_.VerifyBlob(file.digest, cancel));
  }
  return absl::OkStatus();
}

}  // namespace ptq
