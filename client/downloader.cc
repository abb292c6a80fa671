#include "client/downloader.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "client/exit_status.h"
#include "client/output_folder.h"
#include "client/partial_file.h"
#include "client/resource_names.h"
#include "client/rpc_status.h"
#include "common/file.h"
#include "common/sha256.h"
#include "common/status_macros.h"

namespace ptq {
namespace {

constexpr size_t kBufferBytes = 1 << 20;
constexpr char kPartSuffix[] = ".part";

// Feeds the first `size` bytes of a file to `sha256`.
absl::Status HashPrefix(const std::string& path, int64_t size, CallCanceller& canceller,
                        Sha256& sha256) {
  PTQ_ASSIGN_OR_RETURN(auto file, ReadableFile::Open(path));
  std::string buffer(kBufferBytes, '\0');
  for (int64_t offset = 0; offset < size;) {
    PTQ_RETURN_IF_ERROR(canceller.Check());
    const size_t count = static_cast<size_t>(std::min<int64_t>(kBufferBytes, size - offset));
    PTQ_RETURN_IF_ERROR(LocalError(file.ReadAt(offset, buffer.data(), count)));
    sha256.Update(buffer.data(), count);
    offset += static_cast<int64_t>(count);
  }
  return absl::OkStatus();
}

// Loaders look for these first.
bool ComesLast(const std::string& path) {
  return BaseName(path) == "config.json" || absl::EndsWith(path, ".index.json");
}

absl::Status CheckNodes(const std::vector<v1::FileNode>& nodes) {
  for (const v1::FileNode& node : nodes) {
    const bool is_marker = node.path() == kDownloadMarker;
    if (!IsSafeRelativePath(node.path()) || is_marker || !IsSha256Hex(node.digest().hash()) ||
        node.digest().size_bytes() < 0) {
      return LocalError(absl::InternalError(
          "the server names a file that this client does not write: '" + node.path() + "'"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Downloader::DownloadJob(const std::string& job, const std::string& folder) {
  PTQ_ASSIGN_OR_RETURN(auto nodes, client_.ListArtifacts(job));
  if (nodes.empty()) {
    return absl::FailedPreconditionError("the job has no result to download; `ptq status " +
                                         ShortName(job) + "` shows its state");
  }
  PTQ_RETURN_IF_ERROR(CheckNodes(nodes));
  PTQ_RETURN_IF_ERROR(BeginDownload(folder, job));
  std::stable_sort(nodes.begin(), nodes.end(), [](const v1::FileNode& a, const v1::FileNode& b) {
    return !ComesLast(a.path()) && ComesLast(b.path());
  });
  int64_t total_bytes = 0;
  for (const v1::FileNode& node : nodes) total_bytes += node.digest().size_bytes();
  observer_.OnBegin(absl::StrFormat("Downloading %d files to %s", nodes.size(), folder),
                    total_bytes, false);
  for (const v1::FileNode& node : nodes) {
    const std::string path = JoinPath(folder, node.path());
    PTQ_RETURN_IF_ERROR(LocalError(MakeDirectories(DirName(path))));
    PTQ_RETURN_IF_ERROR(Fetch(ParentOf(job), node.digest(), path));
  }
  observer_.OnEnd();
  return CompleteDownload(folder);
}

absl::Status Downloader::DownloadBlob(const std::string& parent, const v1::Digest& digest,
                                      const std::string& path) {
  observer_.OnBegin("Downloading " + path, digest.size_bytes(), true);
  PTQ_RETURN_IF_ERROR(Fetch(parent, digest, path));
  observer_.OnEnd();
  return absl::OkStatus();
}

absl::Status Downloader::Fetch(const std::string& parent, const v1::Digest& digest,
                               const std::string& path) {
  const int64_t size = digest.size_bytes();
  if (PathExists(path)) {
    // Of an earlier run of the same download.
    Sha256 sha256;
    PTQ_ASSIGN_OR_RETURN(auto file, ReadableFile::Open(path));
    if (file.size() == size) {
      PTQ_RETURN_IF_ERROR(HashPrefix(path, size, client_.canceller(), sha256));
      if (sha256.FinishHex() == digest.hash()) {
        observer_.OnBytes(size);
        return absl::OkStatus();
      }
    }
  }
  const std::string part_path = path + kPartSuffix;
  auto opened = PartialFile::Open(part_path);
  if (!opened.ok()) return LocalError(opened.status());
  PartialFile part = std::move(*opened);
  Sha256 sha256;
  if (part.size() > size) PTQ_RETURN_IF_ERROR(LocalError(part.Truncate()));
  bool resumed = part.size() > 0;
  PTQ_RETURN_IF_ERROR(HashPrefix(part_path, part.size(), client_.canceller(), sha256));
  observer_.OnBytes(part.size());

  Backoff backoff(client_.retry());
  bool noted = false;
  while (true) {
    absl::Status status;
    if (part.size() < size) {
      grpc::ClientContext context;
      CallCanceller::Scope scope(client_.canceller(), context);
      google::bytestream::ReadRequest request;
      request.set_resource_name(BlobResourceName(parent, digest.hash(), size));
      request.set_read_offset(part.size());
      const auto reader = client_.stubs().bytes->Read(&context, request);
      google::bytestream::ReadResponse response;
      absl::Status written;
      while (written.ok() && reader->Read(&response)) {
        const std::string& data = response.data();
        if (part.size() + static_cast<int64_t>(data.size()) > size) {
          written = absl::DataLossError(path + ": the server sends more than the file's size");
          break;
        }
        written = part.Append(data.data(), data.size());
        sha256.Update(data);
        observer_.OnBytes(static_cast<int64_t>(data.size()));
        backoff.Succeeded();
      }
      if (!written.ok()) {
        context.TryCancel();
        reader->Finish().ok();
        return LocalError(written);
      }
      status = FromRpcStatus(reader->Finish(), client_.server());
      if (status.ok() && part.size() < size) {
        status = absl::UnavailableError(path + ": the server ended the file early");
      }
    }
    if (status.ok()) {
      if (sha256.FinishHex() == digest.hash()) return LocalError(part.Commit(path));
      observer_.OnBytes(-part.size());
      PTQ_RETURN_IF_ERROR(LocalError(part.Truncate()));
      if (!resumed) {
        ::unlink(part_path.c_str());
        return LocalError(absl::DataLossError(
            path +
            ": what arrived does not fit the file's digest and was removed; run the same "
            "command again"));
      }
      // What an earlier run left may have been damaged meanwhile: once more from the start.
      resumed = false;
      observer_.OnNote(path + ": the part from an earlier run is damaged; it is fetched again.");
      continue;
    }
    if (!absl::IsUnavailable(status) || backoff.Expired()) return status;
    if (!noted) observer_.OnNote("The connection broke; the download continues when it is back.");
    noted = true;
    if (!client_.canceller().SleepFor(backoff.NextWait())) return client_.canceller().Check();
  }
}

}  // namespace ptq
