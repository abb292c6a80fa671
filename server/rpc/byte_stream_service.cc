#include "server/rpc/byte_stream_service.h"

#include <algorithm>
#include <string>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_format.h"
#include "common/sha256.h"
#include "common/status_macros.h"
#include "server/errors/status_details.h"
#include "server/jobs/resource_names.h"
#include "server/rpc/grpc_status.h"

namespace ptq {
namespace {

constexpr int64_t kReadChunkBytes = int64_t{1} << 20;

absl::Status TooManyStreams(int limit) {
  return WithRetryDelay(WithReason(absl::ResourceExhaustedError(absl::StrFormat(
                                       "%d streams are moving bytes already; try again", limit)),
                                   "TOO_MANY_STREAMS"),
                        absl::Seconds(2));
}

}  // namespace

grpc::Status ByteStreamServiceImpl::Read(
    grpc::ServerContext*, const google::bytestream::ReadRequest* request,
    grpc::ServerWriter<google::bytestream::ReadResponse>* writer) {
  absl::Cleanup leave = [this] { --streams_; };
  if (++streams_ > max_streams_) return ToGrpcStatus(TooManyStreams(max_streams_));
  return ToGrpcStatus(ReadBlob(*request, *writer));
}

absl::Status ByteStreamServiceImpl::ReadBlob(
    const google::bytestream::ReadRequest& request,
    grpc::ServerWriter<google::bytestream::ReadResponse>& writer) {
  PTQ_ASSIGN_OR_RETURN(const BlobName name, ParseBlobName(request.resource_name()));
  if (request.read_limit() < 0) return InvalidField("read_limit", "is negative");
  const int64_t size = name.digest.size_bytes();
  if (request.read_offset() < 0 || request.read_offset() > size) {
    return WithReason(absl::OutOfRangeError(absl::StrFormat("read_offset %d is not in 0..%d",
                                                            request.read_offset(), size)),
                      "OFFSET_OUT_OF_RANGE");
  }
  PTQ_ASSIGN_OR_RETURN(const ReadableFile file, blobs_.OpenBlob(name.tenant, name.digest));
  const int64_t rest = size - request.read_offset();
  const int64_t end = request.read_offset() +
                      (request.read_limit() > 0 ? std::min(request.read_limit(), rest) : rest);
  const bool full = request.read_offset() == 0 && end == size;
  Sha256 digest;
  google::bytestream::ReadResponse response;
  for (int64_t offset = request.read_offset(); offset < end;) {
    const int64_t count = std::min(kReadChunkBytes, end - offset);
    std::string& data = *response.mutable_data();
    data.resize(static_cast<size_t>(count));
    PTQ_RETURN_IF_ERROR(file.ReadAt(offset, data.data(), data.size()));
    if (full) digest.Update(data);
    if (!writer.Write(response)) return absl::CancelledError("the client went away");
    offset += count;
  }
  if (full && digest.FinishHex() != name.digest.hash()) {
    PTQ_RETURN_IF_ERROR(blobs_.ReportDamage(name.digest));
    return WithReason(absl::DataLossError("the stored blob " + name.digest.hash() +
                                          " is damaged; what was sent is wrong"),
                      "BLOB_DAMAGED");
  }
  return absl::OkStatus();
}

grpc::Status ByteStreamServiceImpl::Write(
    grpc::ServerContext*, grpc::ServerReader<google::bytestream::WriteRequest>* reader,
    google::bytestream::WriteResponse* response) {
  absl::Cleanup leave = [this] { --streams_; };
  if (++streams_ > max_streams_) return ToGrpcStatus(TooManyStreams(max_streams_));
  return ToGrpcStatus(WriteBlob(*reader, *response));
}

absl::Status ByteStreamServiceImpl::WriteBlob(
    grpc::ServerReader<google::bytestream::WriteRequest>& reader,
    google::bytestream::WriteResponse& response) {
  google::bytestream::WriteRequest request;
  if (!reader.Read(&request)) return absl::CancelledError("the client sent nothing");
  const std::string resource = request.resource_name();
  PTQ_ASSIGN_OR_RETURN(const UploadName name, ParseUploadName(resource));
  PTQ_ASSIGN_OR_RETURN(const auto upload, blobs_.BeginUpload(name));
  if (upload == nullptr) {
    response.set_committed_size(name.digest.size_bytes());
    return absl::OkStatus();
  }
  do {
    if (!request.resource_name().empty() && request.resource_name() != resource) {
      return InvalidField("resource_name", "differs from that of the stream's first message");
    }
    if (static_cast<int64_t>(request.data().size()) > kMaxChunkBytes) {
      return InvalidField("data", absl::StrFormat("%d bytes; at most %d go into one message",
                                                  request.data().size(), kMaxChunkBytes));
    }
    PTQ_RETURN_IF_ERROR(upload->Append(request.write_offset(), request.data()));
    if (request.finish_write()) {
      PTQ_RETURN_IF_ERROR(upload->Finish());
      response.set_committed_size(name.digest.size_bytes());
      return absl::OkStatus();
    }
  } while (reader.Read(&request));
  // Half-closed, or the connection broke: to be continued.
  PTQ_RETURN_IF_ERROR(upload->Sync());
  response.set_committed_size(upload->committed_size());
  return absl::OkStatus();
}

grpc::Status ByteStreamServiceImpl::QueryWriteStatus(
    grpc::ServerContext*, const google::bytestream::QueryWriteStatusRequest* request,
    google::bytestream::QueryWriteStatusResponse* response) {
  const auto name = ParseUploadName(request->resource_name());
  if (!name.ok()) return ToGrpcStatus(name.status());
  const auto progress = blobs_.QueryUpload(*name);
  if (!progress.ok()) return ToGrpcStatus(progress.status());
  response->set_committed_size(progress->committed_size);
  response->set_complete(progress->complete);
  return grpc::Status::OK;
}

}  // namespace ptq
