#include "client/uploader.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <set>
#include <utility>

#include "absl/strings/str_format.h"
#include "client/exit_status.h"
#include "client/resource_names.h"
#include "client/rpc_status.h"
#include "common/file.h"
#include "common/sha256.h"
#include "common/status_macros.h"
#include "common/status_util.h"

namespace ptq {
namespace {

using google::bytestream::QueryWriteStatusRequest;
using google::bytestream::QueryWriteStatusResponse;
using google::bytestream::WriteRequest;
using google::bytestream::WriteResponse;

// How often an upload waits for another writer of the same name to end (a run that was just killed)
// before it takes a name of its own.
constexpr int kBusyAttempts = 5;

std::string FileCount(size_t count) {
  return absl::StrFormat("%d %s", count, count == 1 ? "file" : "files");
}

absl::Status ChangedError(const LocalFile& file) {
  return LocalError(absl::DataLossError(
      file.path + ": the file changed while it was uploaded; run the same command again"));
}

}  // namespace

std::string LocalClientId() {
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  return std::string(host.data()) + "/" + std::to_string(::getuid());
}

Uploader::Uploader(QuantizationClient& client, TransferObserver& observer, Options options)
    : client_(client), observer_(observer), options_(std::move(options)) {
  buffer_.resize(static_cast<size_t>(options_.chunk_bytes));
}

absl::StatusOr<v1::Digest> Uploader::HashFile(const LocalFile& file) {
  auto opened = ReadableFile::Open(file.path);
  if (!opened.ok()) return LocalError(opened.status());
  Sha256 sha256;
  for (int64_t offset = 0; offset < opened->size();) {
    PTQ_RETURN_IF_ERROR(client_.canceller().Check());
    const size_t count = static_cast<size_t>(
        std::min<int64_t>(static_cast<int64_t>(buffer_.size()), opened->size() - offset));
    PTQ_RETURN_IF_ERROR(LocalError(opened->ReadAt(offset, buffer_.data(), count)));
    sha256.Update(buffer_.data(), count);
    offset += static_cast<int64_t>(count);
    observer_.OnBytes(static_cast<int64_t>(count));
  }
  v1::Digest digest;
  digest.set_hash(sha256.FinishHex());
  digest.set_size_bytes(opened->size());
  return digest;
}

absl::StatusOr<std::vector<v1::FileNode>> Uploader::Upload(const std::vector<LocalFile>& files,
                                                           const std::string& what) {
  int64_t total_bytes = 0;
  for (const LocalFile& file : files) {
    auto opened = ReadableFile::Open(file.path);
    // What is no regular file is wrong usage; one that vanished is the local disk's matter.
    if (absl::IsInvalidArgument(opened.status())) return opened.status();
    if (!opened.ok()) return LocalError(opened.status());
    total_bytes += opened->size();
  }
  observer_.OnBegin("Checking " + what, total_bytes, true);
  std::vector<v1::FileNode> nodes;
  std::vector<v1::Digest> digests;
  for (const LocalFile& file : files) {
    PTQ_ASSIGN_OR_RETURN(auto digest, HashFile(file));
    v1::FileNode node;
    node.set_path(file.name);
    *node.mutable_digest() = digest;
    nodes.push_back(std::move(node));
    digests.push_back(std::move(digest));
  }
  observer_.OnEnd();

  PTQ_ASSIGN_OR_RETURN(auto missing, client_.FindMissingBlobs(options_.parent, digests));
  std::set<std::string> wanted;
  for (const v1::Digest& digest : missing) wanted.insert(digest.hash());
  std::vector<Pending> pending;
  int64_t pending_bytes = 0;
  for (size_t i = 0; i < files.size(); ++i) {
    // Files with equal bytes are one blob.
    if (wanted.erase(digests[i].hash()) == 0) continue;
    pending.push_back({files[i], digests[i]});
    pending_bytes += digests[i].size_bytes();
  }
  if (pending.empty()) {
    observer_.OnNote(
        absl::StrFormat("The server already has %s (%s).", what, FileCount(files.size())));
    return nodes;
  }
  const size_t known = files.size() - pending.size();
  std::string title = "Uploading " + what + " (" + FileCount(pending.size());
  if (known > 0) title += absl::StrFormat(", %d already there", known);
  observer_.OnBegin(title + ")", pending_bytes, false);
  for (const Pending& one : pending) PTQ_RETURN_IF_ERROR(Send(one));
  observer_.OnEnd();
  return nodes;
}

absl::StatusOr<int64_t> Uploader::CommittedBytes(const std::string& name, int64_t size) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  CallCanceller::Scope scope(client_.canceller(), context);
  QueryWriteStatusRequest request;
  request.set_resource_name(name);
  QueryWriteStatusResponse response;
  const absl::Status status = FromRpcStatus(
      client_.stubs().bytes->QueryWriteStatus(&context, request, &response), client_.server());
  if (absl::IsNotFound(status)) return int64_t{0};
  PTQ_RETURN_IF_ERROR(status);
  return response.complete() ? size : std::min(response.committed_size(), size);
}

absl::Status Uploader::Send(const Pending& pending) {
  const int64_t size = pending.digest.size_bytes();
  std::string name = UploadResourceName(
      options_.parent, StableUuid(options_.client_id + "/" + pending.digest.hash()),
      pending.digest.hash(), size);
  Backoff backoff(client_.retry());
  int64_t reported = 0;   // bytes that the observer knows of
  int64_t committed = 0;  // the furthest that the server has confirmed
  int busy = 0;
  bool noted = false;
  while (true) {
    auto offset = CommittedBytes(name, size);
    absl::Status status = offset.status();
    if (offset.ok()) {
      if (*offset > committed) backoff.Succeeded();
      committed = std::max(committed, *offset);
      observer_.OnBytes(*offset - reported);
      reported = *offset;
      // A complete upload has its blob already; an empty one is yet to be made.
      if (*offset == size && size > 0) return absl::OkStatus();
      status = SendFrom(pending, name, *offset, &reported);
      if (status.ok()) return status;
    }
    switch (status.code()) {
      case absl::StatusCode::kUnavailable:
      case absl::StatusCode::kDeadlineExceeded:
        if (backoff.Expired()) return status;
        if (!noted) observer_.OnNote("The connection broke; the upload continues when it is back.");
        noted = true;
        break;
      case absl::StatusCode::kAborted:
      case absl::StatusCode::kOutOfRange:
        if (++busy > 2 * kBusyAttempts) return status;
        if (busy == kBusyAttempts) {
          name = UploadResourceName(options_.parent, RandomUuid(), pending.digest.hash(), size);
        }
        break;
      default:
        return status;
    }
    if (!client_.canceller().SleepFor(backoff.NextWait())) return client_.canceller().Check();
  }
}

absl::Status Uploader::SendFrom(const Pending& pending, const std::string& name, int64_t offset,
                                int64_t* reported) {
  PTQ_ASSIGN_OR_RETURN(auto file, ReadableFile::Open(pending.file.path));
  const int64_t size = pending.digest.size_bytes();
  if (file.size() != size) return ChangedError(pending.file);
  grpc::ClientContext context;
  CallCanceller::Scope scope(client_.canceller(), context);
  WriteResponse response;
  const auto writer = client_.stubs().bytes->Write(&context, &response);
  WriteRequest request;
  request.set_resource_name(name);
  bool last = false;
  while (!last) {
    const size_t count =
        static_cast<size_t>(std::min<int64_t>(options_.chunk_bytes, size - offset));
    std::string* data = request.mutable_data();
    data->resize(count);
    if (absl::Status read = file.ReadAt(offset, data->data(), count); !read.ok()) {
      context.TryCancel();
      writer->Finish().ok();
      return LocalError(read);
    }
    last = offset + static_cast<int64_t>(count) == size;
    request.set_write_offset(offset);
    request.set_finish_write(last);
    // The server may end early: it has got the blob from someone else, or it refuses.
    if (!writer->Write(request)) break;
    offset += static_cast<int64_t>(count);
    observer_.OnBytes(static_cast<int64_t>(count));
    *reported += static_cast<int64_t>(count);
    request.clear_resource_name();
  }
  writer->WritesDone();
  const absl::Status status = FromRpcStatus(writer->Finish(), client_.server());
  if (status.ok() && response.committed_size() != size) {
    return absl::UnavailableError(absl::StrFormat("the server kept %d of %d bytes of %s",
                                                  response.committed_size(), size,
                                                  pending.file.name));
  }
  if (status.ok()) {
    observer_.OnBytes(size - *reported);
    *reported = size;
  }
  // Above all: the bytes no longer fit the digest that was taken a moment ago.
  if (absl::IsInvalidArgument(status)) {
    return LocalError(absl::DataLossError(
        pending.file.path + ": " + Message(status) +
        "; if the file changed while it was uploaded, run the same command again"));
  }
  return status;
}

}  // namespace ptq
